package revisions_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/ra/revisions"
	"github.com/brevet-pki/brevet/store/memory"
)

func compiler(t testing.TB) revisions.Compiler {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	return revisions.Compiler{
		TrustDomain: "fleet.example", PublicURL: "http://pki.example", Files: revisions.NewFiles(t.TempDir(), log), Clock: time.Now, Log: log,
		Certificates: new(memory.Store), Retention: 48 * time.Hour,
	}
}

func configOf(t *testing.T, store *memory.Store) revisions.Config {
	t.Helper()
	c := compiler(t)
	return revisions.Config{Compiler: c, Store: store, Identities: store, First: policy.Default(), Clock: c.Clock, Log: c.Log}
}

const onlyLab = "rules:\n- name: lab\n  evidence: [token]\n  when: token.identity.startsWith(\"lab/\")\n"

// rulesOf returns the names of the rules in effect.
func rulesOf(t *testing.T, r *revisions.Revisions) string {
	t.Helper()
	p, ok := r.Current().Policy.(interface{ Rules() []string })
	if !ok {
		t.Fatalf("the policy is a %T", r.Current().Policy)
	}
	return strings.Join(p.Rules(), " ")
}

// TestRevisionsChangeTogether applies documents, and opens the store again.
func TestRevisionsChangeTogether(t *testing.T) {
	store := new(memory.Store)
	c := configOf(t, store)
	r, err := revisions.New(t.Context(), c)
	if err != nil || rulesOf(t, r) != "tokens" || r.Newest().Revision != 1 {
		t.Fatalf("the first policy is %+v: %v", r.Newest(), err)
	}
	defer r.Close()
	apply := func(document string, based uint64) (ra.PolicyRevision, error) {
		return r.Apply(t.Context(), ra.PolicyChange{Document: []byte(document), Based: based, By: pki.ActorSystem("test"), At: time.Now()})
	}
	if p, err := apply(onlyLab, 1); err != nil || p.Revision != 2 || rulesOf(t, r) != "lab" {
		t.Errorf("the second policy is %+v with the rules %s: %v", p, rulesOf(t, r), err)
	}
	for document, rule := range map[string]pki.Rule{
		"rules: [{name: a, evidence: [tokn]}]":                                            pki.RulePolicyInvalid,
		"rules: [{name: a, evidence: [x5c], identity: 'device/{x5c.serial}'}]":            pki.RulePolicyInvalid, // no section
		"x5c: {acme: {roots: no PEM}}\nrules: [{name: a, evidence: [token]}]":             pki.RulePolicyInvalid,
		"x5c: {acme: {rots: no PEM}}\nrules: [{name: a, evidence: [token]}]":              pki.RulePolicyInvalid,
		"jwt: {ci: {issuer: 'http://ci.example'}}\nrules: [{name: a, evidence: [token]}]": pki.RulePolicyInvalid,
		"tpm: [a]\nrules: [{name: a, evidence: [token]}]":                                 pki.RulePolicyInvalid,
		strings.Replace(onlyLab, "lab/", "other/", 1):                                     pki.RulePolicyRevision, // based on 1
	} {
		if _, err := apply(document, 1); err == nil {
			t.Errorf("%q is applied", document)
		} else if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != rule {
			t.Errorf("%q: %v, want %s", document, err, rule)
		}
	}
	if rulesOf(t, r) != "lab" || r.Newest().Revision != 2 {
		t.Errorf("after refused documents, revision %d with the rules %s is in effect", r.Newest().Revision, rulesOf(t, r))
	}
	again, err := revisions.New(t.Context(), c)
	if err != nil || rulesOf(t, again) != "lab" {
		t.Errorf("the store opened again: %v", err)
	}
	e, err := r.Explain([]byte("evidence: [token]\nidentity: device/1\nfacts: {token.identity: device/1}\n"))
	if err != nil || e.Revision != 2 || len(e.Trials) != 1 || e.Trials[0].Outcome != policy.Unmatched {
		t.Errorf("explained as %+v: %v", e, err)
	}
	if _, err := r.Explain([]byte("facts: {}")); err == nil {
		t.Error("facts of no evidence are explained")
	}
}

// TestCredentialsStayWithTheirHost applies a policy that names another API server than the one of a credential.
func TestCredentialsStayWithTheirHost(t *testing.T) {
	sent := make(chan string, 16)
	newServer := func() *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { sent <- r.Header.Get("Authorization") }))
		t.Cleanup(s.Close)
		return s
	}
	own, other := newServer(), newServer()
	c := configOf(t, new(memory.Store))
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "jwt"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "jwt", own.Listener.Addr().String()), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Compiler.Files = revisions.NewFiles(dir, c.Log)
	r, err := revisions.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i, want := range []string{"Bearer secret", "", "Bearer secret"} {
		server := []*httptest.Server{own, other, own}[i]
		document := fmt.Sprintf("jwt: {berlin: {issuer: i%d, audience: b, algorithms: [RS256], kubernetes: {server: %q, keys: true}}}\n%s", i, server.URL, onlyLab)
		if _, err := r.Apply(t.Context(), ra.PolicyChange{Document: []byte(document), Based: uint64(i + 1), By: pki.ActorSystem("test"), At: time.Now()}); err != nil {
			t.Fatal(err)
		}
		if got := <-sent; got != want {
			t.Errorf("%s gets the credential %q, want %q", server.URL, got, want)
		}
	}
}

// TestFilesOfOldDocumentsAreReleased checks documents with many sources. Only the CRLs of the newest revision stay.
func TestFilesOfOldDocumentsAreReleased(t *testing.T) {
	c := configOf(t, new(memory.Store))
	r, err := revisions.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: newRoot(t).Raw})
	document := func(source, rules string) []byte {
		return fmt.Appendf(nil, "x5c: {%s: {roots: %q}}\n%s", source, root, rules)
	}
	apply := func(document []byte, based uint64) error {
		_, err := r.Apply(t.Context(), ra.PolicyChange{Document: document, Based: based, By: pki.ActorSystem("test"), At: time.Now()})
		return err
	}
	for i := range 500 {
		if err := apply(document(fmt.Sprintf("refused-%d", i), "rules: [{name: a}]"), 1); err == nil {
			t.Fatal("a policy with a fault is applied")
		}
	}
	for i := range 20 {
		if err := apply(document(fmt.Sprintf("source-%d", i), onlyLab), uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	c.Compiler.Files.Reload()
	if got := c.Compiler.Files.Sources(); !slices.Equal(got, []string{"source-19"}) {
		t.Errorf("the files of %q are in memory", got)
	}
	runtime.KeepAlive(r)
}

func newRoot(t testing.TB) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// TestRefusedRequestsAreExplained sends requests that no rule grants.
func TestRefusedRequestsAreExplained(t *testing.T) {
	c := configOf(t, new(memory.Store))
	c.First = []byte(onlyLab)
	r, err := revisions.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	grant := func(path string, n int) (actor, digest string) {
		t.Helper()
		id, err := pki.SPIFFEIDIn("fleet.example", path)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(fmt.Append(nil, path, n))
		by := pki.ActorEvidence(pki.EvidenceToken, fmt.Sprint(n))
		_, err = r.Current().Policy.Grant(ra.Claims{{Kind: pki.EvidenceToken, Claim: ra.Claim{
			Identity: id, Facts: map[string]any{"token.identity": path}, Actor: by, Digest: sum,
		}}}, "", at)
		if granted := strings.HasPrefix(path, "lab/"); granted != (err == nil) {
			t.Errorf("%s: %v", path, err)
		}
		return by.String(), hex.EncodeToString(sum[:])
	}
	actor, digest := grant("device/1", 1)
	good, _ := grant("lab/1", 2)
	for _, request := range []string{actor, digest} {
		e, err := r.ExplainRefused(request)
		if err != nil || e.Revision != 1 || e.RefusedBy != 1 || !e.RefusedAt.Equal(at) || e.Trials[0].Outcome != policy.Unmatched {
			t.Errorf("%s is explained as %+v: %v", request, e, err)
		}
	}
	for _, request := range []string{"", good, "token:3", strings.ToUpper(digest), "unknown"} {
		if e, err := r.ExplainRefused(request); err == nil {
			t.Errorf("%q is explained as %+v", request, e)
		} else if refusal, ok := pki.AsRefusal(err); !ok || refusal.Rule != pki.RuleNotFound {
			t.Errorf("%q: %v, want %s", request, err, pki.RuleNotFound)
		}
	}
	change := ra.PolicyChange{Document: []byte(strings.Replace(onlyLab, "lab/", "device/", 1)), Based: 1, By: pki.ActorSystem("test"), At: at}
	if _, err := r.Apply(t.Context(), change); err != nil {
		t.Fatal(err)
	}
	if e, err := r.ExplainRefused(actor); err != nil || e.Revision != 2 || e.RefusedBy != 1 || e.Trials[0].Outcome != policy.Matched {
		t.Errorf("with the next revision, explained as %+v: %v", e, err)
	}
	refuse := func(name string) {
		t.Helper()
		claims := ra.Claims{{Kind: pki.EvidenceTPM, Claim: ra.Claim{Actor: pki.ActorEvidence(pki.EvidenceTPM, name)}}}
		if _, err := r.Current().Policy.Grant(claims, "", at); err == nil {
			t.Errorf("the TPM %s is granted an identity", name)
		}
	}
	for n := range 255 {
		refuse(fmt.Sprint(n))
		refuse("0") // a device that retries
	}
	if _, err := r.ExplainRefused(actor); err != nil {
		t.Errorf("after refusals of 255 others: %v", err)
	}
	refuse("more")
	if _, err := r.ExplainRefused(actor); err == nil {
		t.Error("257 refused requests are remembered")
	}
}

func FuzzDocument(f *testing.F) {
	root := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: newRoot(f).Raw}))
	f.Add([]byte(onlyLab))
	f.Add(fmt.Appendf(nil, "x5c: {acme: {roots: %q, keys: [P-256], max_chain: 3, require_crls: true}}\ntpm: {acme: {roots: %q}}\n%s", root, root, onlyLab))
	f.Add([]byte("jwt: {ci: {issuer: i, audience: a, algorithms: [RS256], claims: [{fact: jwt.a, pointer: /a, type: string}], " +
		"kubernetes: {server: 'https://10.0.0.1', review: true}}}\n" + onlyLab))
	c := compiler(f)
	f.Fuzz(func(t *testing.T, document []byte) {
		_, err := c.Compile(document, 1)
		if refusal, ok := pki.AsRefusal(err); err != nil && (!ok || refusal.Rule != pki.RulePolicyInvalid) {
			t.Errorf("the error %v is not a refusal of the document", err)
		}
	})
}

// withoutDocuments is a store that was recreated from the log.
type withoutDocuments struct{ ra.PolicyStore }

func (s withoutDocuments) Policy(context.Context, uint64) (ra.PolicyRevision, error) {
	return ra.PolicyRevision{}, pki.Refuse(pki.RuleNotFound, "give it", "the document is missing")
}

// TestDocumentsAreMissing starts with a store whose documents are missing: only the right document makes it start.
func TestDocumentsAreMissing(t *testing.T) {
	store := new(memory.Store)
	c := configOf(t, store)
	if _, err := revisions.New(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c.Store = withoutDocuments{store}
	if r, err := revisions.New(t.Context(), c); err != nil || r.Newest().Revision != 1 {
		t.Errorf("with the right document: %v", err)
	}
	c.First = []byte(onlyLab)
	if _, err := revisions.New(t.Context(), c); err == nil || !strings.Contains(err.Error(), "the document with the SHA-256") {
		t.Errorf("with another document: %v", err)
	}
}

// failingIssuer activates profiles, or fails.
type failingIssuer struct{ fails error }

func (i *failingIssuer) Prepare(all, _ *ca.Profiles) (*ca.Profiles, error) { return all, nil }
func (i *failingIssuer) Activate(context.Context, *ca.Profiles) error      { return i.fails }

// TestActivationFails applies a document while the URLs of its CRLs cannot be recorded. The revision before stays in effect,
// until the document is applied again or the server restarts.
func TestActivationFails(t *testing.T) {
	store, issuer := new(memory.Store), new(failingIssuer)
	c := configOf(t, store)
	c.Compiler.Issuer = issuer
	r, err := revisions.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	apply := func(based uint64) (ra.PolicyRevision, error) {
		return r.Apply(t.Context(), ra.PolicyChange{Document: []byte(onlyLab), Based: based, By: pki.ActorSystem("test"), At: time.Now()})
	}
	issuer.fails = errors.New("the store is away")
	if _, err := apply(1); !errors.Is(err, issuer.fails) || rulesOf(t, r) != "tokens" {
		t.Errorf("with the rules %s: %v", rulesOf(t, r), err)
	}
	if _, err := revisions.New(t.Context(), c); !errors.Is(err, issuer.fails) {
		t.Errorf("the store opened again: %v", err)
	}
	issuer.fails = nil
	if p, err := apply(2); err != nil || p.Revision != 2 || rulesOf(t, r) != "lab" || r.Newest().Revision != 2 {
		t.Errorf("applied again as %+v with the rules %s: %v", p, rulesOf(t, r), err)
	}
}
