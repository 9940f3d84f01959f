package node

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/config/configtest"
)

var update = flag.Bool("update", false, "update docs/configuration.md and docs/policy.md if they are not current")

func TestReferenceIsCurrent(t *testing.T) {
	configtest.Reference(t, "configuration.md", "The server: brevet.yaml", configtest.Keys(t, DefaultConfig()), "", *update)
	profiles, err := os.ReadFile("../../../ca/profiles.yaml")
	if err != nil {
		t.Fatal(err)
	}
	after := "\n### The default profiles\n\n```yaml\n" + string(profiles) + "```\n"
	configtest.Reference(t, "policy.md", "The keys of a profile", configtest.Keys(t, ca.ProfileConfig{}), after, *update)
}

func TestExampleLoads(t *testing.T) {
	keys := configtest.Keys(t, DefaultConfig())
	example := configtest.ReadExample(t, "brevet.example.yaml", DefaultConfig(), keys)
	if _, err := ReadConfig(example.Path()); err != nil {
		t.Error(err)
	}
	for _, k := range keys {
		switch k.Path {
		case "hsm", "hsm.label", "hsm.serial": // exactly one of label and serial is required; TestWrongConfigurationsNameTheKey tests that
			continue
		case "store.postgres", "store.server": // one requires the other, which the same test tests
			continue
		}
		_, err := ReadConfig(example.Without(t, "hsm.serial", k.Path))
		if k.Required != (err != nil) {
			t.Errorf("a file without %s (required: %v): error %v", k.Path, k.Required, err)
		}
		if name := strings.ReplaceAll(k.Path, configtest.AnyName, "sensor"); err != nil && !strings.Contains(err.Error(), ": "+name) {
			t.Errorf("a file without %s: the error does not name it: %v", name, err)
		}
	}
}

// sound is a valid configuration. Each test case replaces one of its lines, or adds one.
const sound = `trust_domain: fleet.example
state_dir: /var/lib/brevet
server_names: [ca.fleet.example, "2001:db8::1"]
public_url: http://pki.fleet.example
listen: {grpc: ":7443"}
hsm: {label: issuing}
log: {format: text}
`

// wrongConfigurations maps changes of the sound configuration to the errors that they cause.
var wrongConfigurations = map[string]string{
	"trust_domain: Fleet.example":                                     `trust_domain: "Fleet.example" cannot be a trust domain`,
	"trust_domin: fleet.example":                                      `:8: trust_domin: there is no such key; the nearest is trust_domain`,
	"state_dir: brevet":                                               `state_dir: "brevet" is not an absolute path`,
	"server_names: ca.fleet.example":                                  `:3: server_names: a list belongs here`,
	"server_names: []":                                                `server_names: name at least one`,
	"server_names: [ca_1]":                                            `server_names: "ca_1" is not a host name`,
	"server_names: [0.0.0.0]":                                         `server_names: 0.0.0.0 is not the address of a machine`,
	"public_url: pki.fleet.example":                                   `public_url: "pki.fleet.example" is not an http:// URL`,
	"public_url: https://pki.fleet":                                   `public_url: "https://pki.fleet" is not`,
	"public_url: http://:80":                                          `public_url: "http://:80" is not`,
	"public_url: http://a@pki.fleet":                                  `public_url: "http://a@pki.fleet" is not`,
	"public_url: http://pki.fleet/?a":                                 `public_url: "http://pki.fleet/?a" is not`,
	"advertise_address: ca.fleet.example":                             `advertise_address: "ca.fleet.example" is not a server's address`,
	"listen: 7443":                                                    `:5: listen: keys with values belong here`,
	"listen: {grpc: 7443}":                                            `listen.grpc: "7443" is no address`,
	"listen: {grpc: \":0\"}":                                          `listen.grpc: ":0" is no address`,
	"listen: {http: \"\"}":                                            `listen.http: "" is no address`,
	"listen: {http: \":http\"}":                                       `listen.http: ":http" is no address`,
	"listen: {operations: \":65536\"}":                                `listen.operations: ":65536" is no address`,
	"replica: {max_staleness: 1s}":                                    `replica.max_staleness: 1s is out of range: use 2s to 5m0s`,
	"replica: {max_staleness: 10m}":                                   `replica.max_staleness: 10m0s is out of range: use 2s to 5m0s`,
	"replica: {max_staleness: 5}":                                     `replica.max_staleness`,
	"replica: {staleness: 5s}":                                        `replica.staleness`,
	"store: {server: a}":                                              `store.server: a server with SQLite shares its store with no other`,
	"store: {postgres: \"dbname=brevet\"}":                            `store.server: "" is not a name`,
	"store: {postgres: \"dbname=brevet\", server: A/b}":               `store.server: "A/b" is not a name`,
	"store: {postgres: \"dbname=brevet password=x\", server: a}":      `store.postgres: the connection string has a password`,
	"store: {postgres: \"postgres://brevet:x@db/brevet\", server: a}": `store.postgres: the connection string has a password`,
	"store: {postgres: \"password = hunter2 foo\", server: a}":        `store.postgres: the connection string has a password`,
	"store: {postgres: \"dbname\", server: a}":                        `store.postgres: not a connection string of PostgreSQL`,
	"hsm: {}":                    `hsm: set one of label and serial`,
	"hsm: {label: a, serial: b}": `hsm: set one of label and serial`,
	"further_hsms: [{label: b}]": `further_hsms: [0]: set pin_file`,
	"further_hsms: [{label: issuing, pin_file: /p}]":          `further_hsms: [0]: there is another HSM issuing: name one of them by its serial number`,
	"further_hsms: [{label: b, pin_file: /p, sessions: 257}]": `further_hsms: [0]: 257 is out of range`,
	"further_hsms: [{label: b, pin: 1}]":                      `further_hsms[0].pin: there is no such key; the nearest is pin_file`,
	"hsm: {label: a, sessions: 0}":                            `hsm.sessions: 0 is out of range: use 1 to 256`,
	"hsm: {label: a, sessions: 257}":                          `hsm.sessions: 257 is out of range`,
	"hsm: {label: a, sessions: many}":                         `:6: hsm.sessions: a whole number belongs here, not "many"`,
	"rate_limits: {identity: {per_second: 0}}":                `rate_limits.identity.per_second: 0 is out of range: use 0.01 to 1000000`,
	"rate_limits: {identity: {burst: 0}}":                     `rate_limits.identity.burst: 0 is out of range: use 1 to 1000000`,
	"rate_limits: {address: {per_second: 1e7}}":               `rate_limits.address.per_second: 1e+07 is out of range`,
	"rate_limits: {address: {per_second: .nan}}":              `rate_limits.address.per_second: NaN is out of range`,
	"rate_limits: {address: {burst: 1000001}}":                `rate_limits.address.burst: 1000001 is out of range`,
	"ocsp: {max_age: 500ms}":                                  `ocsp.max_age: 500ms is out of range: use 1s to 1h0m0s`,
	"ocsp: {max_age: 61m}":                                    `ocsp.max_age: 1h1m0s is out of range`,
	"crl: {max_age: 1ms}":                                     `crl.max_age: 1ms is out of range: use 1s to 1h0m0s`,
	"public_url: http://pki.müller.example":                   `public_url: "http://pki.m\u00fcller.example" has characters that a URL in a certificate cannot have: write the host as xn--`,
	"public_url: http://pki_1.example":                        `public_url: "http://pki_1.example": "pki_1.example" is no host name`,
	"crl: {partitions: 0}":                                    `crl.partitions: 0 is out of range: use 1 to 1024`,
	"crl: {partitions: 1025}":                                 `crl.partitions: 1025 is out of range`,
	"public_url: http://pki/{partition}":                      `public_url: "http://pki/{partition}" has characters`,
	"log: {format: xml}":                                      `:7: log.format: "xml" is not a format: use text or json`,
	"log: {level: loud}":                                      `:7: log.level: "loud" is not a level: use debug, info, warn or error`,
	"log: {level: [info]}":                                    `:7: log.level: `,
	"profiles: {pump: {kinds: [device]}}":                     `:8: profiles: this key was replaced: write profiles in the document of the policy`,
	"crl: {directories: [www/crl]}":                           `crl.directories: "www/crl" is not an absolute path`,
	"crl: {directories: [/srv/a, /srv/a]}":                    `crl.directories: "/srv/a" is there twice`,
	"retention: 47h":                                          `retention: 47h0m0s is too short: keep records for 48h0m0s at least`,
}

func TestWrongConfigurationsNameTheKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "brevet.yaml")
	read := func(text string) (Config, error) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return ReadConfig(path)
	}
	c, err := read(sound)
	if err != nil || c.AdvertiseAddress != "ca.fleet.example:7443" || c.HSM.Sessions != 8 {
		t.Fatalf("%+v, %v", c, err)
	}
	for change, want := range wrongConfigurations {
		key, _, _ := strings.Cut(change, ":")
		lines := strings.Split(strings.TrimSpace(sound), "\n")
		at := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, key+":") })
		if at < 0 {
			lines = append(lines, change)
		} else {
			lines[at] = change
		}
		_, err := read(strings.Join(lines, "\n"))
		var wrong *cli.Usage
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", change, err, want)
		}
	}
}
