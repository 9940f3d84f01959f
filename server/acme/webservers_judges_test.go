//go:build judges

package acme_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// webServer is a client that runs all the time, and uses its certificate itself.
type webServer struct {
	name string
	// start starts the server, which requests a certificate.
	start func(j *judge) (stop func())
	// ready returns whether the server has written its first certificate to its files.
	ready func(j *judge) bool
	// restarts means that the server uses a new certificate after a restart alone.
	restarts bool
	// nonce, shed and failure are the reactions of the client as in commandClient.
	nonce, shed, failure reaction
	// rotates means that the client renews when a rotation wants it.
	rotates bool
}

// direct gets a certificate, and uses it.
func (s *webServer) direct(j *judge) {
	stop := s.start(j)
	j.waitIssued(time.Minute, 1)
	if s.restarts {
		j.wait(30*time.Second, "the certificate", func() bool { return s.ready(j) })
		stop()
		s.start(j)
	}
	j.serves()
}

// watched gets a certificate with a bad nonce while the server sheds load and its store fails, and starts a rotation.
func (s *webServer) watched(j *judge) {
	j.watch.spoilNonce()
	j.watch.shedOrder()
	j.watch.failFinalize()
	stop := s.start(j)
	j.waitIssued(3*time.Minute, 1)
	j.wait(30*time.Second, "the certificate", func() bool { return s.ready(j) })
	for _, refusal := range []struct {
		name string
		is   func(e exchange) bool
		want reaction
	}{{"badNonce", isBadNonce, s.nonce}, {"a shed request", isShed, s.shed}, {"a failure", isFailure, s.failure}} {
		got, pause, err := j.watch.reactionTo(refusal.is, false)
		j.t.Logf("after %s, the client %s (%s)", refusal.name, got, pause)
		if err != nil || got != refusal.want {
			j.t.Errorf("after %s, the client %s (%v), want that it %s", refusal.name, got, err, refusal.want)
		}
	}
	if s.restarts {
		stop()
		s.start(j)
		j.serves()
	}
	j.rotate()
	if s.rotates {
		j.waitIssued(time.Minute, 2)
	} else {
		time.Sleep(windowOver)
		j.wantIssued(1, 0)
	}
	if asked := j.watch.count(isRenewalInfo) > 0; asked != s.rotates {
		j.t.Errorf("the client requests renewal information: %v, want %v", asked, s.rotates)
	}
}

var webServers = []webServer{
	{
		name: "caddy-2.6", start: caddy("caddy"), ready: caddyReady,
		nonce: repeats, shed: pauses, failure: hurries,
	},
	{
		name: "caddy-2.11", start: caddy("caddy-2.11"), ready: caddyReady,
		nonce: repeats, shed: pauses, failure: hurries, rotates: true,
	},
	{
		name: "apache", start: apache, ready: apacheReady,
		restarts: true, nonce: repeats, shed: pauses, failure: pauses, rotates: true,
	},
}

func caddy(program string) func(j *judge) (stop func()) {
	return func(j *judge) (stop func()) {
		j.environ = []string{"HOME=" + j.dir, "XDG_CONFIG_HOME=" + j.dir, "XDG_DATA_HOME=" + j.dir}
		config := j.write("Caddyfile", fmt.Sprintf(`{
	admin off
	http_port %s
	https_port %s
	email admin@fleet.example
	renew_interval 1s
	acme_ca %s
	acme_ca_root %s
	acme_eab {
		key_id %s
		mac_key %s
	}
}
%s {
	respond "hello"
}
`, j.port, j.tlsPort, j.directoryURL, j.roots, j.kid, j.hmac, host))
		return j.background(program, "run", "--config", config, "--adapter", "caddyfile")
	}
}

func caddyReady(j *judge) bool {
	found, _ := filepath.Glob(filepath.Join(j.dir, "caddy", "certificates", "*", host, host+".json"))
	return len(found) > 0
}

func apache(j *judge) (stop func()) {
	if _, err := os.Stat("/usr/lib/apache2/modules/mod_md.so"); err != nil {
		j.t.Fatalf("%v: %v", err, errMissing)
	}
	config := j.write("httpd.conf", fmt.Sprintf(`ServerRoot %[1]s
PidFile %[1]s/httpd.pid
ErrorLog %[1]s/error.log
LogLevel warn md:debug
ServerName localhost
User nobody
Group nogroup
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
LoadModule md_module /usr/lib/apache2/modules/mod_md.so
Mutex file:%[1]s
Listen 127.0.0.1:%[2]s
Listen 127.0.0.1:%[3]s
MDStoreDir %[1]s/md
MDPortMap http:%[2]s https:%[3]s
MDCertificateAuthority %[4]s
MDCACertificateFile %[5]s
MDCertificateAgreement accepted
MDContactEmail admin@fleet.example
MDExternalAccountBinding %[6]s %[7]s
MDProfile acme
MDRenewViaARI on
MDCheckInterval 1s
MDRetryDelay 5s
MDomain %[8]s
<VirtualHost *:%[3]s>
ServerName %[8]s
SSLEngine on
</VirtualHost>
`, j.dir, j.port, j.tlsPort, j.directoryURL, j.roots, j.kid, j.hmac, host))
	for _, dir := range []string{filepath.Dir(j.dir), j.dir} { // Apache's processes have another account
		if err := os.Chmod(dir, 0o755); err != nil {
			j.t.Fatal(err)
		}
	}
	if err := os.Chmod(j.roots, 0o644); err != nil {
		j.t.Fatal(err)
	}
	j.t.Cleanup(func() {
		if text, err := os.ReadFile(filepath.Join(j.dir, "error.log")); j.t.Failed() {
			j.t.Logf("%s %v", text, err)
		}
	})
	return j.background("apache2", "-X", "-f", config)
}

func apacheReady(j *judge) bool {
	_, err := os.Stat(filepath.Join(j.dir, "md", "staging", host, "pubcert.pem"))
	return err == nil
}

// serves checks that a server presents a certificate of the CA for the host.
func (j *judge) serves() {
	j.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(j.Root)
	j.wait(20*time.Second, "a connection with the certificate", func() bool {
		conn, err := tls.Dial("tcp", "127.0.0.1:"+j.tlsPort, &tls.Config{ServerName: host, RootCAs: roots})
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}
