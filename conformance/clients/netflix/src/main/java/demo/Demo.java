package demo;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.netflix.appinfo.ApplicationInfoManager;
import com.netflix.appinfo.InstanceInfo;
import com.netflix.appinfo.InstanceInfo.InstanceStatus;
import com.netflix.appinfo.MyDataCenterInstanceConfig;
import com.netflix.appinfo.providers.EurekaConfigBasedInstanceInfoProvider;
import com.netflix.discovery.DefaultEurekaClientConfig;
import com.netflix.discovery.DiscoveryClient;
import com.netflix.discovery.EurekaClient;
import com.netflix.discovery.shared.transport.jersey3.Jersey3TransportClientFactories;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.Executors;

/**
 * Tells over HTTP what Netflix's client sees, and calls the instances that it chooses.
 * Arguments: BASES APP ID PORT VARIANT, the last of them "plain" or "ribbon".
 */
public class Demo {
  /** What chooses among the instances of a vip. */
  interface Chooser {
    List<InstanceInfo> usable(String vip);

    /** Throws if there is none. */
    InstanceInfo next(String vip);
  }

  /** The client's own round robin. */
  record Plain(EurekaClient eureka) implements Chooser {
    @Override
    public List<InstanceInfo> usable(String vip) {
      return eureka.getInstancesByVipAddress(vip, false);
    }

    @Override
    public InstanceInfo next(String vip) {
      return eureka.getNextServerFromEureka(vip, false);
    }
  }

  private final String id;
  private final Chooser chooser;
  private final ObjectMapper json = new ObjectMapper();
  private final HttpClient http = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(5)).build();

  Demo(String id, Chooser chooser) {
    this.id = id;
    this.chooser = chooser;
  }

  private void serve(HttpExchange exchange) throws IOException {
    int status = 200;
    String answer;
    try {
      answer = answer(exchange.getRequestURI().getPath().split("/"));
    } catch (Exception noneOrFailed) {
      status = 503;
      answer = noneOrFailed.toString();
    }
    byte[] body = answer.getBytes(StandardCharsets.UTF_8);
    boolean array = answer.startsWith("[");
    exchange.getResponseHeaders().set("Content-Type", array ? "application/json" : "text/plain");
    exchange.sendResponseHeaders(status, body.length);
    exchange.getResponseBody().write(body);
    exchange.close();
  }

  private String answer(String[] path) throws Exception {
    switch (path[1]) {
      case "whoami":
        return id;
      case "instances":
        return json.writeValueAsString(
            chooser.usable(path[2]).stream().map(InstanceInfo::getId).sorted().toList());
      case "choose":
        return call(chooser.next(path[2]));
      default:
        throw new IllegalArgumentException("unknown path");
    }
  }

  private String call(InstanceInfo instance) throws Exception {
    URI uri = URI.create("http://" + instance.getHostName() + ":" + instance.getPort() + "/whoami");
    HttpRequest request = HttpRequest.newBuilder(uri).timeout(Duration.ofSeconds(5)).build();
    HttpResponse<String> response = http.send(request, HttpResponse.BodyHandlers.ofString());
    if (response.statusCode() != 200) {
      throw new IOException(uri + " answered " + response.statusCode());
    }
    return response.body();
  }

  public static void main(String[] arguments) throws IOException {
    String id = arguments[2];
    int port = Integer.parseInt(arguments[3]);
    configure(arguments[0].split(","), arguments[1].toLowerCase(), id, port);

    MyDataCenterInstanceConfig instance = new MyDataCenterInstanceConfig() {
      @Override
      public String getHostName(boolean refresh) {
        return "localhost";
      }

      @Override
      public String getIpAddress() {
        return "127.0.0.1";
      }
    };
    ApplicationInfoManager self =
        new ApplicationInfoManager(instance, new EurekaConfigBasedInstanceInfoProvider(instance).get());
    EurekaClient eureka = new DiscoveryClient(
        self, new DefaultEurekaClientConfig(), Jersey3TransportClientFactories.getInstance());
    Runtime.getRuntime().addShutdownHook(new Thread(eureka::shutdown));

    Chooser chooser = arguments[4].equals("ribbon") ? new Ribbon(eureka) : new Plain(eureka);
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
    server.createContext("/", new Demo(id, chooser)::serve);
    server.setExecutor(Executors.newCachedThreadPool());
    server.start();
    self.setInstanceStatus(InstanceStatus.UP);
  }

  /** The client reads its settings from system properties. */
  private static void configure(String[] bases, String app, String id, int port) {
    System.setProperty("org.slf4j.simpleLogger.defaultLogLevel", "warn");
    System.setProperty("eureka.name", app);
    System.setProperty("eureka.vipAddress", app);
    System.setProperty("eureka.instanceId", id);
    System.setProperty("eureka.port", String.valueOf(port));
    System.setProperty("eureka.lease.renewalInterval", "1");
    System.setProperty("eureka.lease.duration", "30");
    System.setProperty("eureka.client.refresh.interval", "1");
    System.setProperty("eureka.appinfo.initial.replicate.time", "0");
    System.setProperty("eureka.appinfo.replicate.interval", "1");
    // A bound of 1 keeps renewing and fetching every second also after a time-out.
    System.setProperty("eureka.client.heartbeat.exponentialBackOffBound", "1");
    System.setProperty("eureka.client.cacheRefresh.exponentialBackOffBound", "1");
    // The client shuffles the servers of a zone but begins with its own zone, the first:
    // a zone for each server keeps the first one preferred.
    StringBuilder zones = new StringBuilder();
    for (int i = 0; i < bases.length; i++) {
      zones.append(i == 0 ? "" : ",").append("zone").append(i);
      System.setProperty("eureka.serviceUrl.zone" + i, bases[i] + "/");
    }
    System.setProperty("eureka.region", "default");
    System.setProperty("eureka.default.availabilityZones", zones.toString());
    System.setProperty("eureka.shouldUseDns", "false");
  }
}
