package demo;

import java.util.List;
import java.util.stream.Collectors;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.cloud.client.ServiceInstance;
import org.springframework.cloud.client.discovery.DiscoveryClient;
import org.springframework.cloud.client.loadbalancer.LoadBalanced;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestTemplate;

/** Tells over HTTP what a Spring Cloud client sees, and calls other instances by service name. */
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
      return new RestTemplate();
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
  String choose(@PathVariable("service") String service) {
    return balanced.getForObject("http://" + service + "/whoami", String.class);
  }

  public static void main(String[] arguments) {
    SpringApplication.run(Demo.class, arguments);
  }
}
