package crl_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/internal/revtest"
)

// TestNginxReloadsCRLs runs nginx with published CRLs, and the cron job in docs/relying-parties.md. After the job has
// run, nginx must refuse a revoked client.
func TestNginxReloadsCRLs(t *testing.T) {
	s := newScene(t, revtest.Never)
	dir, www := t.TempDir(), t.TempDir()
	s.further = []string{www}
	s.start(t, revtest.Never)
	if _, err := s.Import(t.Context(), rootCRL(t, s.root, nil), operator); err != nil {
		t.Fatal(err)
	}
	s.running(t)
	crls := filepath.Join(www, "chain.crl.pem")
	eventually(t, "two CRLs are published", func() bool {
		text, err := os.ReadFile(crls)
		return err == nil && bytes.Count(text, []byte("BEGIN X509 CRL")) == 2
	})
	client, port := s.credential(t, dir), freePort(t)
	nginx := startNginx(t, dir, port, crls)
	write(t, filepath.Join(dir, "reload.sh"), []byte("echo reloaded >>reloads\nexec "+strings.Join(append(nginx, "-s", "reload"), " ")+"\n"))
	job := regexp.MustCompile("(?s)```sh\n(#!/bin/sh\n# reload-crl: .*?)```").FindSubmatch(read(t, "../../docs/relying-parties.md"))
	if job == nil {
		t.Fatal("docs/relying-parties.md has no job")
	}
	write(t, filepath.Join(dir, "job.sh"), job[1])
	reloads := func() int {
		cmd := exec.CommandContext(t.Context(), "sh", "job.sh")
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CRL="+crls, "STAMP=stamp", "RELOAD=sh reload.sh")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("the job: %v\n%s", err, out)
		}
		return bytes.Count(read(t, filepath.Join(dir, "reloads")), []byte("reloaded"))
	}
	if first, second := reloads(), reloads(); first != 1 || second != 1 {
		t.Errorf("the job reloads %d and then %d times, want one reload for one file", first, second)
	}
	eventually(t, "the client is let in", func() bool { return status(t, client, port) == http.StatusOK })
	before := read(t, crls)
	leaf, err := x509.ParseCertificate(client.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	s.revoke(t, s.ca.Ref(t, leaf), pki.KeyCompromise)
	eventually(t, "the chain is new", func() bool { return !bytes.Equal(read(t, crls), before) })
	if n := reloads(); n != 2 {
		t.Errorf("the job has reloaded %d times in all", n)
	}
	eventually(t, "the client is refused", func() bool { return status(t, client, port) == http.StatusBadRequest })
}

// credential issues a certificate for clients and servers, and writes its key and chain to a directory.
func (s *scene) credential(t *testing.T, dir string) tls.Certificate {
	t.Helper()
	key, now := revtest.Key(t, "p256"), time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: revtest.Serial(t).Int(), DNSNames: []string{"localhost"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, s.ca.Certificate, key.Public(), s.ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s.book.Issue(s.ca.Ref(t, leaf), leaf.NotAfter)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, all ...[]byte) (text []byte) {
		for _, der := range all {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
		}
		return text
	}
	write(t, filepath.Join(dir, "chain.pem"), encode("CERTIFICATE", der, s.ca.Certificate.Raw))
	write(t, filepath.Join(dir, "roots.pem"), encode("CERTIFICATE", s.root.Certificate.Raw))
	write(t, filepath.Join(dir, "key.pem"), encode("PRIVATE KEY", private))
	return tls.Certificate{Certificate: [][]byte{der, s.ca.Certificate.Raw}, PrivateKey: key}
}

// startNginx runs nginx until the end of the test. It returns the command line that controls nginx.
func startNginx(t *testing.T, dir, port, crls string) []string {
	t.Helper()
	config := fmt.Sprintf(`daemon off; pid nginx.pid; error_log stderr info; worker_processes 1;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  server {
    listen 127.0.0.1:%s ssl;
    ssl_certificate chain.pem; ssl_certificate_key key.pem;
    ssl_client_certificate roots.pem; ssl_verify_client on; ssl_verify_depth 2; ssl_crl %s;
    location / { return 200 "served"; }
  }
}`, port, crls)
	write(t, filepath.Join(dir, "nginx.conf"), []byte(config))
	command := []string{"nginx", "-e", "stderr", "-p", dir, "-c", filepath.Join(dir, "nginx.conf")}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), command[0], command[1:]...)
	output := &revtest.LogBook{}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatalf("nginx: %v: run deploy/setup.sh --test", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // also ends nginx's worker processes
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(output.String())
		}
	})
	eventually(t, "nginx listens", func() bool {
		var dialer net.Dialer
		conn, err := dialer.DialContext(t.Context(), "tcp", "127.0.0.1:"+port)
		return err == nil && conn.Close() == nil
	})
	return command
}

// status sends a request over a new connection with the client certificate, and returns the HTTP status, or 0.
func status(t *testing.T, client tls.Certificate, port string) int {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{client}, InsecureSkipVerify: true,
	}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://127.0.0.1:"+port, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for range 3000 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("timeout waiting until %s", what)
}
