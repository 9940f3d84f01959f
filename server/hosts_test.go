package server_test

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/ca"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// hostCase is a TLS server's certificate and the host name that a TLS client expects in it.
type hostCase struct {
	name    string
	holder  *servertest.Holder
	host    string
	granted bool // whether the identity was registered with host as a name
	port    string
}

// subjects sets the form of the subject in the profiles workload and server. The profile device keeps the default form.
func subjects(name string, c *ca.ProfileConfig) {
	switch name {
	case "workload":
		c.Subject = "common_name"
	case "server":
		c.Subject = "none"
	}
}

// TestNoClientTakesAnIdentityForAHost serves TLS with certificates of identities whose paths look like host names. TLS
// clients must accept a certificate for the names with which its identity was registered, and for no others.
func TestNoClientTakesAnIdentityForAHost(t *testing.T) {
	t.Parallel()
	w := servertest.New(t, ground, servertest.Options{Profile: subjects})
	names := func(dns ...string) func(*brevetv1.CreateIdentityRequest) {
		return func(r *brevetv1.CreateIdentityRequest) { r.Spec.Names = servertest.Names(dns, nil) }
	}
	nameless := func(r *brevetv1.CreateIdentityRequest) { r.Spec.Profile = "server" }
	bank := w.Enrolled(t, "device", "bank.example")
	address := w.Enrolled(t, "device", "127.0.0.1")
	long := w.Enrolled(t, "device", "long/"+strings.Repeat("x", 227), names("long.fleet.example"))
	granted := w.Enrolled(t, "device", "pump.example", names("pump.fleet.example"))
	common := w.Enrolled(t, "workload", "web/bank.example")
	named := w.Enrolled(t, "workload", "Web.fleet.example", names("web.fleet.example"))
	empty := w.Enrolled(t, "device", "shop.example", nameless, names("shop.fleet.example"))
	cases := []*hostCase{
		{name: "a path like a host", holder: bank, host: "bank.example"},
		{name: "a path like an address", holder: address, host: "127.0.0.1"},
		{name: "a long path", holder: long, host: "long.fleet.example", granted: true},
		{name: "a path like another host", holder: granted, host: "pump.example"},
		{name: "a granted name", holder: granted, host: "pump.fleet.example", granted: true},
		{name: "a common name with a host behind a slash", holder: common, host: "bank.example"},
		{name: "a common name that was granted", holder: named, host: "web.fleet.example", granted: true},
		{name: "a path like a host, and no subject", holder: empty, host: "shop.example"},
		{name: "a granted name, and no subject", holder: empty, host: "shop.fleet.example", granted: true},
	}
	for _, c := range cases {
		c.port = serveTLS(t, w, c.holder)
	}
	root := filepath.Join(t.TempDir(), "root.pem")
	writePEM(t, root, "CERTIFICATE", w.Root.Raw)
	for client, judge := range hostJudges {
		t.Run(client, func(t *testing.T) {
			for i, accepted := range judge(t, root, cases) {
				if c := cases[i]; accepted != c.granted {
					t.Errorf("%s: accepted for %s: %v, want %v", c.name, c.host, accepted, c.granted)
				}
			}
		})
	}
}

// serveTLS serves HTTPS with a holder's certificate, and returns the port.
func serveTLS(t *testing.T, w *servertest.World, h *servertest.Holder) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{{Certificate: [][]byte{h.Certificate.Raw, w.Issuing.Raw}, PrivateKey: h.Key}},
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL[strings.LastIndex(s.URL, ":")+1:]
}

// hostJudges are TLS clients, keyed by name. Each returns for every case whether the client accepted the server.
var hostJudges = map[string]func(t *testing.T, root string, cases []*hostCase) []bool{
	"OpenSSL": eachHost(func(root string, c *hostCase) []string {
		verify := "-verify_hostname"
		if net.ParseIP(c.host) != nil {
			verify = "-verify_ip"
		}
		return []string{"openssl", "s_client", "-connect", "127.0.0.1:" + c.port, "-CAfile", root, verify, c.host, "-verify_return_error"}
	}),
	"GnuTLS": eachHost(func(root string, c *hostCase) []string {
		return []string{"gnutls-cli", "--x509cafile", root, "--verify-hostname", c.host, "--port", c.port, "127.0.0.1"}
	}),
	"curl": eachHost(func(root string, c *hostCase) []string {
		at := c.host + ":" + c.port
		return []string{"curl", "-sS", "--noproxy", "*", "--cacert", root, "--resolve", at + ":127.0.0.1", "https://" + at}
	}),
	"Python": allHosts("/usr/bin/python3", "testdata/hosts.py"),
	"Java":   allHosts("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "testdata/Hosts.java"),
}

// eachHost returns a TLS client that runs a command for each case. Exit code 0 means that it accepted the server.
func eachHost(command func(root string, c *hostCase) []string) func(*testing.T, string, []*hostCase) []bool {
	return func(t *testing.T, root string, cases []*hostCase) []bool {
		t.Helper()
		var accepted []bool
		for _, c := range cases {
			args := command(root, c)
			out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
			if _, ended := err.(*exec.ExitError); err != nil && !ended { //nolint:errorlint // what Run returns
				t.Fatalf("%s: %v: run deploy/setup.sh --test", args[0], err)
			}
			if (err == nil) != c.granted {
				t.Logf("%s: %v\n%s", c.name, err, out)
			}
			accepted = append(accepted, err == nil)
		}
		return accepted
	}
}

// allHosts returns a TLS client that runs one command for all cases. The command prints one line for each case.
func allHosts(command ...string) func(*testing.T, string, []*hostCase) []bool {
	return func(t *testing.T, root string, cases []*hostCase) []bool {
		t.Helper()
		args := slices.Concat(command[1:], []string{root})
		for _, c := range cases {
			args = append(args, c.host, c.port)
		}
		out, err := exec.CommandContext(t.Context(), command[0], args...).CombinedOutput()
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if err != nil || len(lines) != len(cases) {
			t.Fatalf("%s: %v: run deploy/setup.sh --test\n%s", command[0], err, out)
		}
		var accepted []bool
		for i, line := range lines {
			if accepted = append(accepted, line == "accepted"); accepted[i] != cases[i].granted {
				t.Logf("%s: %s", cases[i].name, line)
			}
		}
		return accepted
	}
}
