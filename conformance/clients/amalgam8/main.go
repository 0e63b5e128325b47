// A client of the Amalgam8 registry as its users write one: the same JSON structure in both
// directions, nothing but what that registry promises. It goes through the life of two instances
// and ends with 1, and a line that says why, at the first answer that it cannot use.
//
// Arguments: URL [TOKEN]
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"sort"
	"strings"
	"time"
)

type endpoint struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// Sent with its zero values, as encoding/json does it.
type instance struct {
	ID            string          `json:"id,omitempty"`
	ServiceName   string          `json:"service_name"`
	Endpoint      endpoint        `json:"endpoint"`
	Status        string          `json:"status"`
	Tags          []string        `json:"tags"`
	Metadata      json.RawMessage `json:"metadata,omitempty"`
	TTL           int             `json:"ttl"`
	LastHeartbeat time.Time       `json:"last_heartbeat"`
}

type registered struct {
	ID    string `json:"id"`
	TTL   int    `json:"ttl"`
	Links struct {
		Self      string `json:"self"`
		Heartbeat string `json:"heartbeat"`
	} `json:"links"`
}

// A machine that is busy with other things takes its time.
const patience = 5 * time.Minute

var errGone = errors.New("the registry does not know the instance")

type client struct {
	base, token string
}

func (c client) send(method, path string, sent, got interface{}, wanted int) error {
	var body io.Reader
	if sent != nil {
		text, err := json.Marshal(sent)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequest(method, c.base+path, body)
	if err != nil {
		return err
	}
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	if sent != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := (&http.Client{Timeout: patience}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != wanted {
		var told struct{ Error string }
		if err := json.Unmarshal(text, &told); err != nil || told.Error == "" {
			return fmt.Errorf("%s %s: status %d without an Error: %s", method, path, response.StatusCode, text)
		}
		if response.StatusCode == http.StatusGone {
			return errGone
		}
		return fmt.Errorf("%s %s: status %d: %s", method, path, response.StatusCode, told.Error)
	}
	if got == nil {
		return nil
	}
	if err := json.Unmarshal(text, got); err != nil {
		return fmt.Errorf("%s %s: %w: %s", method, path, err, text)
	}
	return nil
}

// What is registered is the same structure again, with what the registry said.
func (c client) register(i *instance) error {
	var answer registered
	if err := c.send("POST", "/api/v1/instances", i, &answer, http.StatusCreated); err != nil {
		return err
	}
	link, err := url.Parse(answer.Links.Heartbeat)
	if err != nil || !link.IsAbs() || !strings.HasPrefix(answer.Links.Heartbeat, c.base) {
		return fmt.Errorf("a link that leads elsewhere: %q", answer.Links.Heartbeat)
	}
	i.ID, i.TTL, i.LastHeartbeat = answer.ID, answer.TTL, time.Now()
	return nil
}

func (c client) renew(i instance) error {
	return c.send("PUT", "/api/v1/instances/"+i.ID+"/heartbeat", nil, nil, http.StatusOK)
}

func (c client) deregister(i instance) error {
	return c.send("DELETE", "/api/v1/instances/"+i.ID, nil, nil, http.StatusOK)
}

func (c client) list(query string) ([]instance, error) {
	var answer struct {
		Instances []instance `json:"instances"`
	}
	err := c.send("GET", "/api/v1/instances"+query, nil, &answer, http.StatusOK)
	sort.Slice(answer.Instances, func(a, b int) bool {
		return answer.Instances[a].Endpoint.Value < answer.Instances[b].Endpoint.Value
	})
	return answer.Instances, err
}

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func same(what string, got, wanted interface{}) {
	if !reflect.DeepEqual(got, wanted) {
		must(fmt.Errorf("%s: %v, not %v", what, got, wanted))
	}
}

func (c client) listed(query string, wanted ...instance) {
	found, err := c.list(query)
	must(err)
	ids, known := []string{}, []string{}
	for _, i := range found {
		ids = append(ids, i.ID)
	}
	for _, i := range wanted {
		known = append(known, i.ID)
	}
	same("the list "+query, ids, known)
}

func main() {
	c := client{base: strings.TrimRight(os.Args[1], "/")}
	if len(os.Args) > 2 {
		c.token = os.Args[2]
	}
	began := time.Now()
	one := instance{ServiceName: "Go Client", Endpoint: endpoint{"http", "10.0.0.1:80"}, TTL: 600,
		Metadata: json.RawMessage(`{"weight":3,"deep":[1,null,"x"]}`), Tags: []string{"v1", "blue"}}
	two := instance{ServiceName: "Go Client", Endpoint: endpoint{"tcp", "10.0.0.2:5432"}, TTL: 600,
		Metadata: json.RawMessage(`7`), Status: "starting"}
	must(c.register(&one))
	must(c.register(&two))
	first := one.ID
	must(c.register(&one)) // with its id and the time of its last heartbeat, as they are now
	same("the id of what is registered again", one.ID, first)
	must(c.renew(one))

	service := "?service_name=" + url.QueryEscape(one.ServiceName)
	c.listed("", one)
	c.listed(service, one, two)
	c.listed(service+"&tags=blue,v1", one)
	c.listed(service+"&status=Starting", two)
	c.listed("?id="+two.ID, two)
	c.listed("?service_name=go+client")
	found, err := c.list(service)
	must(err)
	same("the metadata", string(found[0].Metadata), string(one.Metadata))
	same("the other's metadata", string(found[1].Metadata), string(two.Metadata))
	same("the status", []string{found[0].Status, found[1].Status}, []string{"UP", "STARTING"})
	same("the tags", found[0].Tags, one.Tags)
	same("the lease", found[0].TTL, 600)
	beat := found[0].LastHeartbeat
	if beat.Before(began.Add(-time.Minute)) || beat.After(time.Now().Add(time.Minute)) {
		must(fmt.Errorf("a heartbeat at %v", beat))
	}
	short, err := c.list(service + "&fields=tags")
	must(err)
	same("a field that was not asked for", short[0].Status, "")
	same("the endpoint, which always is", short[0].Endpoint, one.Endpoint)
	var names struct {
		Services []string `json:"services"`
	}
	must(c.send("GET", "/api/v1/services", nil, &names, http.StatusOK))
	same("the services", names.Services, []string{"Go Client"})
	_, err = c.list("?colour=red")
	if err == nil || !strings.HasSuffix(err.Error(), "error_filter_selection_criteria") {
		must(fmt.Errorf("a list by nothing that there is: %v", err))
	}

	// The second one falls silent, and comes back when it is told that it is not known.
	two.TTL = 1
	must(c.register(&two))
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		found, err := c.list("?id=" + two.ID)
		must(err)
		if len(found) == 0 {
			break
		}
		if time.Now().After(deadline) {
			must(errors.New("a silent instance that never goes"))
		}
	}
	same("a heartbeat too late", c.renew(two), errGone)
	two.TTL = 600
	before := two.ID
	must(c.register(&two))
	same("the id of what came back", two.ID, before)
	must(c.renew(two))
	c.listed(service, one, two)

	must(c.deregister(one))
	must(c.deregister(two))
	same("to deregister twice", c.deregister(two), errGone)
	c.listed(service)
	fmt.Println("ok")
}
