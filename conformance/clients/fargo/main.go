// A program on fargo that tells over HTTP what it sees: BASES APP ID PORT VARIANT (xml or json).
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net/http"
	"os"
	"os/signal"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hudl/fargo"
	logging "github.com/op/go-logging"
)

const interval = time.Second

// client holds one connection for each server: fargo picks a server at random for each call and
// never fails over, so a careful user keeps to one and moves on by himself.
type client struct {
	connections []*fargo.EurekaConnection
	used        int
	instance    fargo.Instance

	lock sync.RWMutex
	up   map[string][]*fargo.Instance // by VIP, in the order of their ids
}

func (c *client) connection() *fargo.EurekaConnection { return c.connections[c.used] }

// keep registers, renews and fetches until told to stop; whatever fails is tried at the next server.
func (c *client) keep(stop <-chan struct{}) {
	registered := false
	for {
		err := c.turn(registered)
		registered = err == nil
		if _, refused := fargo.HTTPResponseStatusCode(err); err != nil && !refused {
			c.used = (c.used + 1) % len(c.connections)
		}
		select {
		case <-stop:
			return
		case <-time.After(interval):
		}
	}
}

func (c *client) turn(registered bool) error {
	if registered {
		if err := c.connection().HeartBeatInstance(&c.instance); err != nil {
			return err
		}
	} else {
		// A copy: fargo puts what the server answers in place of what it was given.
		sent := c.instance
		if err := c.connection().ReregisterInstance(&sent); err != nil {
			return err
		}
	}
	applications, err := c.connection().GetApps()
	if err != nil {
		return err
	}
	up := map[string][]*fargo.Instance{}
	for _, application := range applications {
		for _, instance := range application.Instances {
			if instance.Status == fargo.UP {
				up[instance.VipAddress] = append(up[instance.VipAddress], instance)
			}
		}
	}
	for _, instances := range up {
		sort.Slice(instances, func(i, j int) bool { return instances[i].Id() < instances[j].Id() })
	}
	c.lock.Lock()
	c.up = up
	c.lock.Unlock()
	return nil
}

func (c *client) known(service string) []*fargo.Instance {
	c.lock.RLock()
	defer c.lock.RUnlock()
	return c.up[service]
}

func (c *client) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	parts := strings.SplitN(strings.TrimPrefix(request.URL.Path, "/"), "/", 2)
	switch {
	case parts[0] == "whoami":
		fmt.Fprint(response, c.instance.InstanceId)
	case parts[0] == "instances" && len(parts) == 2:
		ids := []string{}
		for _, instance := range c.known(parts[1]) {
			ids = append(ids, instance.Id())
		}
		_ = json.NewEncoder(response).Encode(ids)
	case parts[0] == "choose" && len(parts) == 2:
		c.call(parts[1], response)
	default:
		http.NotFound(response, request)
	}
}

func (c *client) call(service string, response http.ResponseWriter) {
	found := c.known(service)
	if len(found) == 0 {
		http.Error(response, "none", http.StatusServiceUnavailable)
		return
	}
	chosen := found[rand.Intn(len(found))]
	reply, err := http.Get(fmt.Sprintf("http://%s:%d/whoami", chosen.HostName, chosen.Port))
	if err != nil {
		http.Error(response, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer reply.Body.Close()
	response.WriteHeader(reply.StatusCode)
	_, _ = io.Copy(response, reply.Body)
}

func main() {
	bases, app, id, variant := os.Args[1], os.Args[2], os.Args[3], os.Args[5]
	port, err := strconv.Atoi(os.Args[4])
	if err != nil {
		log.Fatal(err)
	}
	logging.SetLevel(logging.ERROR, "fargo")
	c := &client{instance: fargo.Instance{
		InstanceId: id, HostName: "localhost", App: strings.ToUpper(app), IPAddr: "127.0.0.1",
		VipAddress: app, SecureVipAddress: app, Status: fargo.UP, Overriddenstatus: fargo.UNKNOWN,
		Port: port, PortEnabled: true, DataCenterInfo: fargo.DataCenterInfo{Name: fargo.MyOwn},
		LeaseInfo: fargo.LeaseInfo{RenewalIntervalInSecs: 1, DurationInSecs: 10},
	}}
	for _, base := range strings.Split(bases, ",") {
		connection := fargo.NewConn(base)
		connection.UseJson = variant == "json"
		c.connections = append(c.connections, &connection)
	}
	go func() { log.Fatal(http.ListenAndServe(fmt.Sprintf("127.0.0.1:%d", port), c)) }()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { c.keep(stop); close(stopped) }()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	<-signals
	close(stop)
	<-stopped
	if err := c.connection().DeregisterInstance(&c.instance); err != nil {
		log.Fatal(err)
	}
}
