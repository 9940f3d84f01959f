//go:build judges

package acme_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// commandClient is a client that an operator or a timer runs, or a library.
type commandClient struct {
	name string
	// prepare writes the files that the client needs.
	prepare func(j *judge) commands
	// nonce, shed and failure are the reactions of the client to badNonce, to a newOrder that the server sheds, and to a
	// finalize for which the server's store fails.
	nonce, shed, failure reaction
	// rotates means that the client renews when a rotation wants it.
	rotates bool
}

// commands are the commands of a client.
type commands struct {
	get, renew, revoke func() error
	// due renews the certificate if that is due. It is nil if the client has no schedule.
	due func() error
	// further are commands that must succeed at the end.
	further []func() error
}

// must runs a command that must succeed.
func (j *judge) must(command func() error) {
	j.t.Helper()
	if err := command(); err != nil {
		j.t.Error(err)
	}
}

// direct gets, renews and revokes a certificate.
func (c *commandClient) direct(j *judge) {
	k := c.prepare(j)
	j.must(k.get)
	if k.due != nil {
		j.must(k.due)
		j.wantIssued(1, 0)
	}
	j.must(k.renew)
	j.must(k.revoke)
	j.wantIssued(2, 1)
	for _, command := range k.further {
		j.must(command)
	}
}

// watched gets a certificate with a bad nonce, renews it while the server sheds load and while its store fails, and starts
// a rotation.
func (c *commandClient) watched(j *judge) {
	k := c.prepare(j)
	for _, refusal := range []struct {
		name    string
		arrange func()
		command func() error
		is      func(e exchange) bool
		want    reaction
	}{
		{"badNonce", j.watch.spoilNonce, k.get, isBadNonce, c.nonce},
		{"a shed request", j.watch.shedOrder, k.renew, isShed, c.shed},
		{"a failure", j.watch.failFinalize, k.renew, isFailure, c.failure},
	} {
		refusal.arrange()
		failed := refusal.command()
		got, pause, err := j.watch.reactionTo(refusal.is, true)
		j.t.Logf("after %s, the client %s (%s)", refusal.name, got, pause)
		if err != nil || got != refusal.want || (failed == nil) != (got != givesUp) {
			j.t.Errorf("after %s, the client %s (%v), want that it %s; its result is %v",
				refusal.name, got, err, refusal.want, failed)
		}
		if failed != nil {
			j.must(refusal.command)
		}
	}
	j.wantIssued(3, 0)
	if k.due == nil {
		return
	}
	j.rotate()
	j.must(k.due)
	if c.rotates {
		j.wantIssued(4, 0)
	} else {
		j.wantIssued(3, 0)
	}
	if asked := j.watch.count(isRenewalInfo) > 0; asked != c.rotates {
		j.t.Errorf("the client requests renewal information: %v, want %v", asked, c.rotates)
	}
}

var commandClients = []commandClient{
	{name: "certbot", prepare: certbot, nonce: repeats, shed: givesUp, failure: givesUp},
	{name: "lego-4", prepare: lego4, nonce: repeats, shed: givesUp, failure: givesUp},
	{name: "lego-5", prepare: lego5, nonce: repeats, shed: waits, failure: waits, rotates: true},
	{name: "dehydrated", prepare: dehydrated, nonce: givesUp, shed: givesUp, failure: givesUp},
	{name: "uacme", prepare: uacme, nonce: repeats, shed: givesUp, failure: givesUp},
	{name: "acme-client", prepare: acmeClient, nonce: repeats, shed: waits, failure: waits},
	{name: "acmez", prepare: acmezLibrary, nonce: repeats, shed: givesUp, failure: hurries},
	{name: "golang.org-x-crypto-acme", prepare: goLibrary, nonce: repeats, shed: waits, failure: waits},
}

func certbot(j *judge) commands {
	j.environ = []string{"REQUESTS_CA_BUNDLE=" + j.roots}
	base := []string{
		"--config-dir", filepath.Join(j.dir, "config"), "--work-dir", filepath.Join(j.dir, "work"),
		"--logs-dir", filepath.Join(j.dir, "logs"),
		"--server", j.directoryURL, "--non-interactive",
	}
	certbot := func(args ...string) func() error {
		return func() error { return j.run("certbot", append(args, base...)...) }
	}
	external := j.write("external-key.ini", "eab-kid = "+j.kid+"\neab-hmac-key = "+j.hmac+"\n")
	due := func() error {
		// By default, certbot renews at each run a certificate that is valid for less than 30 days.
		path := filepath.Join(j.dir, "config", "renewal", host+".conf")
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, append([]byte("renew_before_expiry = 30 hours\n"), text...), 0o600); err != nil {
			return err
		}
		defer func() { _ = os.WriteFile(path, text, 0o600) }()
		return certbot("renew", "--no-random-sleep-on-renew")()
	}
	return commands{
		get: certbot("certonly", "--standalone", "--config", external, "--http-01-port", j.port, "--agree-tos",
			"-m", "admin@fleet.example", "-d", host),
		renew:   certbot("renew", "--force-renewal", "--no-random-sleep-on-renew"),
		revoke:  certbot("revoke", "--cert-name", host, "--reason", "superseded", "--no-delete-after-revoke"),
		due:     due,
		further: []func() error{certbot("update_account", "-m", "other@fleet.example"), certbot("unregister")},
	}
}

func lego4(j *judge) commands {
	j.environ = []string{"LEGO_CA_CERTIFICATES=" + j.roots}
	lego := func(hmac string, args ...string) func() error {
		return func() error {
			return j.run("lego", append([]string{
				"--path", j.dir, "--server", j.directoryURL, "--email", "admin@fleet.example", "--accept-tos",
				"--eab", "--kid", j.kid, "--hmac", hmac, "-d", host,
			}, args...)...)
		}
	}
	const used = "used" // lego wants a key, which has no effect any more
	return commands{
		get:    lego(j.hmac, "--http", "--http.port", "127.0.0.1:"+j.port, "run"),
		renew:  lego(used, "--tls", "--tls.port", "127.0.0.1:"+j.tlsPort, "renew", "--days", "90", "--no-random-sleep"),
		due:    lego(used, "--http", "--http.port", "127.0.0.1:"+j.port, "renew", "--days", "1", "--no-random-sleep"),
		revoke: lego(used, "revoke", "--reason", "4"),
	}
}

func lego5(j *judge) commands {
	j.environ = []string{"LEGO_CA_CERTIFICATES=" + j.roots, "LEGO_EAB_KID=" + j.kid, "LEGO_EAB_HMAC=" + j.hmac}
	lego := func(args ...string) func() error {
		return func() error {
			return j.run("lego-5", append(args, "--path", j.dir, "--server", j.directoryURL, "--email", "admin@fleet.example")...)
		}
	}
	obtain := func(args ...string) func() error {
		return lego(append([]string{"run", "--accept-tos", "--eab", "--no-random-sleep", "-d", host}, args...)...)
	}
	return commands{
		get:    obtain("--http", "--http.address", "127.0.0.1:"+j.port),
		renew:  obtain("--tls", "--tls.address", "127.0.0.1:"+j.tlsPort, "--renew-force"),
		due:    obtain("--http", "--http.address", "127.0.0.1:"+j.port),
		revoke: lego("certificates", "revoke", "--cert.name", host, "--reason", "4"),
	}
}

func dehydrated(j *judge) commands {
	j.environ = []string{"CURL_CA_BUNDLE=" + j.roots}
	config := j.write("config", fmt.Sprintf(
		"CA=%s\nBASEDIR=%s\nWELLKNOWN=%s\nEAB_KID=%s\nEAB_HMAC_KEY=%s\nCONTACT_EMAIL=admin@fleet.example\nKEY_ALGO=prime256v1\nRENEW_DAYS=1\n",
		j.directoryURL, j.dir, j.webroot(), j.kid, j.hmac))
	dehydrated := func(args ...string) func() error {
		return func() error { return j.run("dehydrated", append(args, "--config", config)...) }
	}
	j.must(dehydrated("--register", "--accept-terms"))
	return commands{
		get:    dehydrated("--cron", "--domain", host),
		renew:  dehydrated("--cron", "--force", "--domain", host),
		due:    dehydrated("--cron", "--domain", host),
		revoke: dehydrated("--revoke", filepath.Join(j.dir, "certs", host, "cert.pem")),
	}
}

// uacme trusts the certificates of the system alone. It runs where the root is the only one of them.
func uacme(j *judge) commands {
	j.environ = []string{"UACME_CHALLENGE_PATH=" + j.webroot(), "ROOTS=" + j.roots}
	isolated := []string{"--mount"}
	if os.Getuid() != 0 {
		isolated = append(isolated, "--map-root-user")
	}
	isolated = append(isolated, "sh", "-c", `mount --bind "$ROOTS" /etc/ssl/certs/ca-certificates.crt && exec uacme "$@"`, "uacme",
		"-a", j.directoryURL, "-c", filepath.Join(j.dir, "uacme"), "-h", "/usr/share/uacme/uacme.sh")
	uacme := func(args ...string) func() error {
		return func() error {
			// uacme keeps a replaced certificate under the second of its replacement. It fails if it replaces two in one second.
			time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
			return j.run("unshare", append(isolated[:len(isolated):len(isolated)], args...)...)
		}
	}
	j.must(uacme("-y", "-e", j.kid+":"+j.hmac, "new", "admin@fleet.example"))
	due := func() error {
		err := uacme("-t", "EC", "-o", "-d", "1", "issue", host)()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 { // nothing is due
			return nil
		}
		return err
	}
	return commands{
		get:     uacme("-t", "EC", "issue", host),
		renew:   uacme("-t", "EC", "-f", "issue", host),
		due:     due,
		revoke:  uacme("-r", "4", "revoke", filepath.Join(j.dir, "uacme", host, "cert.pem")),
		further: []func() error{uacme("newkey"), uacme("-y", "deactivate")},
	}
}

// acmeClient is a program with the npm package acme-client, which has no schedule.
func acmeClient(j *judge) commands {
	j.environ = []string{"NODE_EXTRA_CA_CERTS=" + j.roots, "EAB_KID=" + j.kid, "EAB_HMAC_KEY=" + j.hmac}
	client := func(operation string) func() error {
		return func() error {
			err := j.run("node", "testdata/acme-client/client.js", j.directoryURL, j.dir, j.port, host, operation)
			if err != nil && strings.Contains(err.Error(), "Cannot find module 'acme-client'") {
				j.t.Fatalf("%v: %v", err, errMissing)
			}
			return err
		}
	}
	return commands{get: client("get"), renew: client("get"), revoke: client("revoke")}
}
