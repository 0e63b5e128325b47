package demo;

import com.netflix.discovery.EurekaClient;
import com.netflix.discovery.shared.transport.jersey.TransportClientFactories;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.autoconfigure.condition.ConditionalOnProperty;
import org.springframework.cloud.client.ServiceInstance;
import org.springframework.cloud.client.discovery.DiscoveryClient;
import org.springframework.cloud.client.loadbalancer.LoadBalanced;
import org.springframework.context.ConfigurableApplicationContext;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.http.ResponseEntity;
import org.springframework.http.client.SimpleClientHttpRequestFactory;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestClientException;
import org.springframework.web.client.RestTemplate;

/**
 * Tells over HTTP what a Spring Cloud client sees, and calls other instances by service name.
 * Written to compile from Spring Boot 2.3 to 4.0. Arguments: BASES APP ID PORT VARIANT.
 */
@SpringBootApplication
@RestController
public class Demo {
  private final DiscoveryClient discovery;
  private final RestTemplate balanced;

  @Value("${eureka.instance.instance-id}")
  private String id;

  public Demo(DiscoveryClient discovery, RestTemplate balanced) {
    this.discovery = discovery;
    this.balanced = balanced;
  }

  @Configuration
  static class Balancing {
    @Bean
    @LoadBalanced
    RestTemplate balanced() {
      SimpleClientHttpRequestFactory requests = new SimpleClientHttpRequestFactory();
      requests.setConnectTimeout(5000);
      requests.setReadTimeout(5000);
      return new RestTemplate(requests);
    }
  }

  @Configuration
  @ConditionalOnProperty("eureka.client.jersey.enabled")
  static class Jersey {
    /** Spring Cloud makes way for Jersey 3 but leaves this bean to the application; only 2025.0 has the class. */
    @Bean
    TransportClientFactories<?> jersey3() throws ReflectiveOperationException {
      return (TransportClientFactories<?>)
          Class.forName("com.netflix.discovery.shared.transport.jersey3.Jersey3TransportClientFactories")
              .getConstructor().newInstance();
    }
  }

  @GetMapping("/whoami")
  String whoami() {
    return id;
  }

  @GetMapping("/instances/{service}")
  List<String> instances(@PathVariable("service") String service) {
    return discovery.getInstances(service).stream()
        .map(ServiceInstance::getInstanceId).sorted().collect(Collectors.toList());
  }

  @GetMapping("/choose/{service}")
  ResponseEntity<String> choose(@PathVariable("service") String service) {
    try {
      return ResponseEntity.ok(balanced.getForObject("http://" + service + "/whoami", String.class));
    } catch (RestClientException | IllegalStateException noneOrFailed) {
      // IllegalStateException is what the load balancers throw for a service without instances.
      return ResponseEntity.status(503).body(noneOrFailed.getMessage());
    }
  }

  public static void main(String[] arguments) {
    String variant = arguments[4];
    SpringApplication application = new SpringApplication(Demo.class);
    application.setDefaultProperties(
        properties(arguments[0].split(","), arguments[1], arguments[2], arguments[3], variant));
    if (variant.equals("webclient")) {
      runAndDeregisterFirst(application);
    } else {
      application.run();
    }
  }

  /**
   * With WebClient, Spring stops the network threads before the registry's client says goodbye, and the
   * instance stays registered (spring-cloud-netflix issue 4055). So the client goes first here.
   */
  private static void runAndDeregisterFirst(SpringApplication application) {
    application.setRegisterShutdownHook(false);
    ConfigurableApplicationContext context = application.run();
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      context.getBean(EurekaClient.class).shutdown();
      context.close();
    }));
  }

  private static Map<String, Object> properties(
      String[] bases, String app, String id, String port, String variant) {
    Map<String, Object> all = new HashMap<>();
    all.put("server.address", "127.0.0.1");
    all.put("server.port", port);
    all.put("server.shutdown", "immediate");
    // The vip is the name as it stands here; the registry's application name is always upper case.
    all.put("spring.application.name", app.toLowerCase());
    all.put("spring.main.banner-mode", "off");
    all.put("spring.main.lazy-initialization", true);
    all.put("spring.jmx.enabled", false);
    all.put("spring.cloud.bootstrap.enabled", false);
    all.put("logging.level.root", "warn");

    all.put("eureka.instance.instance-id", id);
    all.put("eureka.instance.hostname", "localhost");
    all.put("eureka.instance.ip-address", "127.0.0.1");
    all.put("eureka.instance.lease-renewal-interval-in-seconds", 1);
    all.put("eureka.instance.lease-expiration-duration-in-seconds", 30);

    all.put("eureka.client.registry-fetch-interval-seconds", 1);
    all.put("eureka.client.instance-info-replication-interval-seconds", 1);
    all.put("eureka.client.initial-instance-info-replication-interval-seconds", 0);
    // A bound of 1 keeps renewing and fetching every second also after a time-out.
    all.put("eureka.client.heartbeat-executor-exponential-back-off-bound", 1);
    all.put("eureka.client.cache-refresh-executor-exponential-back-off-bound", 1);

    // The client shuffles the servers of a zone but begins with its own zone, the first:
    // a zone for each server keeps the first one preferred.
    StringBuilder zones = new StringBuilder();
    for (int i = 0; i < bases.length; i++) {
      zones.append(i == 0 ? "" : ",").append("zone").append(i);
      all.put("eureka.client.service-url.zone" + i, bases[i] + "/");
    }
    all.put("eureka.client.region", "default");
    all.put("eureka.client.availability-zones.default", zones.toString());

    // The transport, where there is a choice: with none of these it is RestTemplate in 2025.0.
    all.put("eureka.client.jersey.enabled", variant.equals("jersey3"));
    all.put("eureka.client.restclient.enabled", variant.equals("restclient"));
    all.put("eureka.client.webclient.enabled", variant.equals("webclient"));

    // WebClient reads no answer over 256 KB unless told to, and a registry grows larger than that.
    all.put("spring.codec.max-in-memory-size", "16MB");

    all.put("spring.cloud.loadbalancer.cache.ttl", "500ms");
    all.put("ribbon.ServerListRefreshInterval", 500);
    return all;
  }
}
