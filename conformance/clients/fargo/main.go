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
	"github.com/op/go-logging"
)

// client is what a careful user of fargo builds around it. Given several servers, fargo picks one
// at random for every call and gives up when that one fails. So there is a connection for each
// server; one is kept while it works, and a call that fails is tried at the others.
type client struct {
	servers  []fargo.EurekaConnection
	current  int
	instance fargo.Instance

	lock         sync.RWMutex
	applications map[string]*fargo.Application
}

// unknown tells whether the server answered that it has no such instance: asking others is no use.
func unknown(err error) bool {
	code, _ := fargo.HTTPResponseStatusCode(err)
	return code == http.StatusNotFound
}

func (c *client) try(call func(*fargo.EurekaConnection) error) (err error) {
	for range c.servers {
		if err = call(&c.servers[c.current]); err == nil || unknown(err) {
			return err
		}
		c.current = (c.current + 1) % len(c.servers)
	}
	return err
}

// register hands out a copy: fargo overwrites what it is given with what the server answers, and a
// status set from outside would then be sent as the instance's own with the next registration.
func (c *client) register(server *fargo.EurekaConnection) error {
	instance := c.instance
	return server.ReregisterInstance(&instance)
}

func (c *client) heartbeat(server *fargo.EurekaConnection) error {
	return server.HeartBeatInstance(&c.instance)
}

func (c *client) deregister(server *fargo.EurekaConnection) error {
	return server.DeregisterInstance(&c.instance)
}

func (c *client) fetch(server *fargo.EurekaConnection) error {
	applications, err := server.GetApps()
	if err != nil {
		return err
	}
	c.lock.Lock()
	c.applications = applications
	c.lock.Unlock()
	return nil
}

// run is the loop that fargo lacks. Errors need no other care: the next second tries again.
func (c *client) run(stop <-chan os.Signal) {
	ticks := time.NewTicker(time.Second)
	defer ticks.Stop()
	registered := c.try(c.register) == nil
	for {
		_ = c.try(c.fetch)
		select {
		case <-stop:
			return
		case <-ticks.C:
		}
		if registered {
			registered = !unknown(c.try(c.heartbeat))
		}
		if !registered {
			registered = c.try(c.register) == nil
		}
	}
}

// up lists the instances of a service that are UP, ordered by id.
func (c *client) up(service string) []*fargo.Instance {
	c.lock.RLock()
	application := c.applications[strings.ToUpper(service)]
	c.lock.RUnlock()
	if application == nil {
		return nil
	}
	var found []*fargo.Instance
	for _, instance := range application.Instances {
		if instance.Status == fargo.UP {
			found = append(found, instance)
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Id() < found[j].Id() })
	return found
}

func (c *client) ServeHTTP(response http.ResponseWriter, request *http.Request) {
	path := strings.Split(request.URL.Path, "/")[1:]
	switch {
	case path[0] == "whoami":
		fmt.Fprint(response, c.instance.InstanceId)
	case path[0] == "instances" && len(path) == 2:
		ids := []string{}
		for _, instance := range c.up(path[1]) {
			ids = append(ids, instance.Id())
		}
		response.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(response).Encode(ids)
	case path[0] == "choose" && len(path) == 2:
		text, err := ask(c.up(path[1]))
		if err != nil {
			http.Error(response, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = response.Write(text)
	default:
		http.NotFound(response, request)
	}
}

// ask calls one of the instances, any of them, for its name.
func ask(instances []*fargo.Instance) ([]byte, error) {
	if len(instances) == 0 {
		return nil, fmt.Errorf("no instance is UP")
	}
	chosen := instances[rand.Intn(len(instances))]
	patient := http.Client{Timeout: 3 * time.Second}
	reply, err := patient.Get(fmt.Sprintf("http://%s:%d/whoami", chosen.HostName, chosen.Port))
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", chosen.Id(), reply.Status)
	}
	return io.ReadAll(reply.Body)
}

func main() {
	if len(os.Args) != 6 {
		log.Fatal("usage: fargo-client BASES APP ID PORT VARIANT")
	}
	bases, app, id, variant := os.Args[1], os.Args[2], os.Args[3], os.Args[5]
	port, err := strconv.Atoi(os.Args[4])
	if err != nil {
		log.Fatal(err)
	}

	logging.SetLevel(logging.ERROR, "fargo")   // by default it logs every call
	fargo.HttpClient.Timeout = 3 * time.Second // 30 s would last as long as the lease
	c := &client{instance: fargo.Instance{
		InstanceId:       id,
		HostName:         "localhost",
		App:              app,
		IPAddr:           "127.0.0.1",
		VipAddress:       strings.ToLower(app),
		Status:           fargo.UP,
		Overriddenstatus: fargo.UNKNOWN,
		Port:             port,
		PortEnabled:      true,
		DataCenterInfo:   fargo.DataCenterInfo{Name: fargo.MyOwn},
		LeaseInfo:        fargo.LeaseInfo{RenewalIntervalInSecs: 1, DurationInSecs: 30},
	}}
	for _, base := range strings.Split(bases, ",") {
		server := fargo.NewConn(base)
		server.UseJson = variant == "json"
		c.servers = append(c.servers, server)
	}

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() { log.Fatal(http.ListenAndServe(fmt.Sprintf("127.0.0.1:%d", port), c)) }()
	c.run(stop)
	if err := c.try(c.deregister); err != nil {
		log.Print(err) // the lease will end by itself
	}
}
