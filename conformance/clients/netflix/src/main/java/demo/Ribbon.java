package demo;

import com.netflix.appinfo.InstanceInfo;
import com.netflix.client.config.CommonClientConfigKey;
import com.netflix.client.config.DefaultClientConfigImpl;
import com.netflix.discovery.EurekaClient;
import com.netflix.loadbalancer.AvailabilityFilteringRule;
import com.netflix.loadbalancer.DynamicServerListLoadBalancer;
import com.netflix.loadbalancer.LoadBalancerBuilder;
import com.netflix.loadbalancer.Server;
import com.netflix.niws.loadbalancer.DiscoveryEnabledNIWSServerList;
import com.netflix.niws.loadbalancer.DiscoveryEnabledServer;
import java.util.List;
import java.util.Map;
import java.util.NoSuchElementException;
import java.util.concurrent.ConcurrentHashMap;

/** Ribbon, a load balancer for each vip, that follows the list of the Eureka client. */
class Ribbon implements Demo.Chooser {
  private final EurekaClient eureka;
  private final Map<String, DynamicServerListLoadBalancer<DiscoveryEnabledServer>> balancers =
      new ConcurrentHashMap<>();

  Ribbon(EurekaClient eureka) {
    this.eureka = eureka;
  }

  @Override
  public List<InstanceInfo> usable(String vip) {
    return balancer(vip).getReachableServers().stream().map(Ribbon::instance).toList();
  }

  @Override
  public InstanceInfo next(String vip) {
    Server server = balancer(vip).chooseServer();
    if (server == null) {
      throw new NoSuchElementException(vip);
    }
    return instance(server);
  }

  private static InstanceInfo instance(Server server) {
    return ((DiscoveryEnabledServer) server).getInstanceInfo();
  }

  private DynamicServerListLoadBalancer<DiscoveryEnabledServer> balancer(String vip) {
    return balancers.computeIfAbsent(vip, name -> {
      DefaultClientConfigImpl config = new DefaultClientConfigImpl();
      config.loadProperties(name);
      config.set(CommonClientConfigKey.DeploymentContextBasedVipAddresses, name);
      config.set(CommonClientConfigKey.ServerListRefreshInterval, 500);
      // Without "WithUpdater" the builder leaves the refresh interval aside and takes 30 s.
      return LoadBalancerBuilder.<DiscoveryEnabledServer>newBuilder()
          .withClientConfig(config)
          .withDynamicServerList(new DiscoveryEnabledNIWSServerList(config, () -> eureka))
          .withRule(new AvailabilityFilteringRule())
          .buildDynamicServerListLoadBalancerWithUpdater();
    });
  }
}
