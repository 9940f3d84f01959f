package x5c_test

import (
	"context"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/x5c"
)

// der returns the DER of a CRL in PEM.
func der(t testing.TB, crl []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(crl)
	if block == nil {
		t.Fatalf("%s is not PEM", crl)
	}
	return block.Bytes
}

func TestRevokedDevices(t *testing.T) {
	f := newFactory(t)
	f.issue(t, "good", "issuing", spec{})
	f.issue(t, "stolen", "issuing", spec{})
	f.issue(t, "lost", "root", spec{subject: "/O=Acme/CN=Lost CA", extensions: []string{caExtensions}})
	f.issue(t, "below", "lost", spec{})
	day := 24 * time.Hour
	current := func(parent string) []byte { return f.crl(t, parent, now.Add(-day), now.Add(day)) }
	empty := f.crl(t, "issuing", now.Add(-2*day), now.Add(day))
	f.revoke(t, "stolen", "issuing")
	f.revoke(t, "lost", "root")
	root, issuing, lost := current("root"), current("issuing"), current("lost")
	stale := f.crl(t, "issuing", now.Add(-2*day), now.Add(-day))
	future := f.crl(t, "issuing", now.Add(day), now.Add(2*day))
	f.issue(t, "fake", "fake", spec{subject: "/O=Acme/CN=Acme Cameras", extensions: []string{caExtensions}})
	forged := current("fake")
	for name, c := range map[string]struct {
		crls     [][]byte
		device   string
		optional pki.Rule // of a source with optional CRLs; empty if the device is accepted
		required string   // empty if the result is the same; otherwise a part of the error
	}{
		"current":                  {[][]byte{root, issuing}, "good", "", ""},
		"listed":                   {[][]byte{root, issuing}, "stolen", pki.RuleEvidenceRevoked, ""},
		"listed, DER":              {[][]byte{root, der(t, issuing)}, "stolen", pki.RuleEvidenceRevoked, ""},
		"listed, no CRL of root":   {[][]byte{issuing}, "stolen", pki.RuleEvidenceRevoked, ""},
		"CA is listed":             {[][]byte{root, lost}, "below", pki.RuleEvidenceRevoked, ""},
		"none":                     {nil, "good", "", "no CRL of CN=Acme Root"},
		"only of the root":         {[][]byte{root}, "good", "", "no CRL of CN=Acme Cameras"},
		"only of the issuing CA":   {[][]byte{issuing}, "good", "", "no CRL of CN=Acme Root"},
		"stale":                    {[][]byte{root, stale}, "good", "", "stale since 2026-10-31T12:00:00Z"},
		"stale, listed":            {[][]byte{root, stale}, "stolen", pki.RuleEvidenceRevoked, ""},
		"of the future":            {[][]byte{root, future}, "good", "", "no CRL of CN=Acme Cameras"},
		"signed by another key":    {[][]byte{root, forged}, "good", "", "no CRL of CN=Acme Cameras"},
		"listed, and a forged one": {[][]byte{forged, root, issuing}, "stolen", pki.RuleEvidenceRevoked, ""},
		"listed in the newer one":  {[][]byte{empty, issuing, root}, "stolen", pki.RuleEvidenceRevoked, ""},
	} {
		t.Run(name, func(t *testing.T) {
			crls := new(x5c.CRLs)
			if err := crls.Replace(c.crls); err != nil {
				t.Fatal(err)
			}
			issuer := map[string]string{"below": "lost"}[c.device]
			chain := []string{c.device, or(issuer, "issuing")}
			source := f.acme(t)
			source.CRLs = crls
			claim, err := f.identify(t, newAuthenticator(t, source), now, chain...)
			if c.optional == "" && err != nil {
				t.Errorf("with optional CRLs: %v", err)
			} else if c.optional != "" {
				mustRefuse(t, "with optional CRLs", err, c.optional)
				if claim.Actor != pki.ActorEvidence(pki.EvidenceX5C, x5c.SubjectOf(f.certificate(t, c.device), f.certificate(t, chain[1])).String()[4:20]) {
					t.Errorf("the refusal is attributed to %s", claim.Actor)
				}
			}
			source.RequireCRLs = true
			_, err = f.identify(t, newAuthenticator(t, source), now, chain...)
			switch {
			case c.required != "":
				mustBeTemporary(t, err, c.required)
			case c.optional != "":
				mustRefuse(t, "with required CRLs", err, c.optional)
			case err != nil:
				t.Errorf("with required CRLs: %v", err)
			}
		})
	}
}

// mustBeTemporary checks that err is no refusal, and that a later request may succeed.
func mustBeTemporary(t *testing.T, err error, says string) {
	t.Helper()
	if _, refused := pki.AsRefusal(err); err == nil || refused || !pki.IsTemporary(err) || pki.RetryAfter(err) <= 0 || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v, want a temporary error that contains %q", err, says)
	}
}

// A CRL becomes stale while the server runs, and is replaced.
func TestCRLsAreReplaced(t *testing.T) {
	f := newFactory(t)
	f.issue(t, "device", "issuing", spec{})
	dir := t.TempDir()
	put := func(name string, content []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	end := now.Add(time.Hour)
	put("root.crl", f.crl(t, "root", now, now.AddDate(1, 0, 0)))
	put("issuing.crl", der(t, f.crl(t, "issuing", now, end)))
	put("README", []byte("not a CRL"))
	crls := new(x5c.CRLs)
	if err := crls.Load(dir); err != nil {
		t.Fatal(err)
	}
	source := f.acme(t)
	source.CRLs, source.RequireCRLs = crls, true
	a := newAuthenticator(t, source)
	identify := func(at time.Time) error {
		_, err := f.identify(t, a, at, "device", "issuing")
		return err
	}
	if err := identify(end.Add(-time.Second)); err != nil {
		t.Error(err)
	}
	mustBeTemporary(t, identify(end), "stale")
	put("issuing.crl", []byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"))
	if err := crls.Load(dir); err == nil {
		t.Error("a file that is no CRL is loaded")
	}
	if err := identify(end.Add(-time.Second)); err != nil {
		t.Errorf("after a file could not be loaded: %v", err)
	}
	f.revoke(t, "device", "issuing")
	put("issuing.crl", f.crl(t, "issuing", end, end.Add(time.Hour)))
	if err := crls.Load(dir); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, "after it was revoked", identify(end), pki.RuleEvidenceRevoked)
	if err := crls.Load(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that does not exist: %v", err)
	}
	mustRefuse(t, "after the directory was removed", identify(end), pki.RuleEvidenceRevoked)
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.crl"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := crls.Load(dir); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a directory with a FIFO: %v", err)
	}
}

// The race detector checks this test: a server replaces CRLs while devices enroll.
func TestCRLsAreReplacedWhileDevicesEnroll(t *testing.T) {
	f := newFactory(t)
	f.issue(t, "device", "issuing", spec{})
	lists := [][]byte{f.crl(t, "root", now, now.Add(time.Hour)), f.crl(t, "issuing", now, now.Add(time.Hour))}
	source := f.acme(t)
	source.CRLs, source.RequireCRLs = new(x5c.CRLs), true
	if err := source.CRLs.Replace(lists); err != nil {
		t.Fatal(err)
	}
	a := newAuthenticator(t, source)
	p := present(t, a, f.chain(t, "device", "issuing"), f.key(t, "device"), now)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 20 {
				if _, err := a.Identify(context.Background(), p); err != nil {
					t.Error(err)
				}
				if err := source.CRLs.Replace(lists); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func TestUnusableCRLs(t *testing.T) {
	f := newFactory(t)
	f.issue(t, "device", "issuing", spec{})
	f.revoke(t, "device", "issuing")
	good := f.crl(t, "issuing", now, now.Add(time.Hour))
	extended := func(lines string) []byte {
		path := f.path("issuing.conf")
		f.config(t, "issuing")
		config := string(f.read(t, "issuing.conf")) + "[extended]\n" + lines + "\n"
		f.write(t, "extended.conf", config)
		run(t, "ca", "-gencrl", "-config", f.path("extended.conf"), "-cert", f.path("issuing.pem"), "-keyfile", f.path("issuing.key"), "-crlexts", "extended", "-crldays", "1", "-out", path)
		return f.read(t, "issuing.conf")
	}
	for name, crls := range map[string][][]byte{
		"empty":              {{}},
		"no CRL":             {[]byte("CRL")},
		"a certificate":      {f.read(t, "issuing.pem")},
		"data after the CRL": {append(der(t, good), 0)},
		"a delta":            {extended("2.5.29.27=critical,ASN1:INT:1")},
		"a partition":        {extended("issuingDistributionPoint=critical,@point\n[point]\nfullname=URI:http://acme.example/1.crl")},
		"unknown critical":   {extended("1.2.3.4=critical,ASN1:NULL")},
		"65 CRLs":            repeat(good, 65),
		"signed with SHA-1":  {f.crl(t, "issuing", now, now.Add(time.Hour), "-md", "sha1")},
		"one of two":         {good, {0x30}},
		"over 16 MiB":        {append([]byte{0x30, 0x84, 1, 0, 0, 1}, make([]byte, 16<<20)...)},
	} {
		c := new(x5c.CRLs)
		if err := c.Replace(crls); err == nil {
			t.Errorf("%s: Replace returns no error", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	if err := new(x5c.CRLs).Replace(repeat(good, 64)); err != nil {
		t.Error(err)
	}
}

func repeat(crl []byte, n int) [][]byte {
	all := make([][]byte, n)
	for i := range all {
		all[i] = crl
	}
	return all
}
