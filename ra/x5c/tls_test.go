package x5c_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/x5c"
)

// A device has the same subject and facts by either kind of evidence. Only the actors differ.
func TestTLSClientsAreTheSameDevices(t *testing.T) {
	t.Parallel()
	f := newFactory(t)
	f.issue(t, "camera", "issuing", spec{subject: "/O=Acme/serialNumber=SN-1/CN=Camera"})
	crls := new(x5c.CRLs)
	source := f.acme(t)
	source.CRLs = crls
	a := newAuthenticator(t, source)
	chain := f.chain(t, "camera", "issuing")
	byStatement, err := a.Identify(t.Context(), present(t, a, chain, f.key(t, "camera"), now))
	if err != nil {
		t.Fatal(err)
	}
	presented := ra.Presented{Evidence: pki.X5CTLSEvidence{Certificates: chain}.Encode(), Request: requestID(t), Key: certified, At: now}
	byTLS, err := a.TLS().Identify(t.Context(), presented)
	if err != nil {
		t.Fatal(err)
	}
	if byTLS.Subject != byStatement.Subject || !reflect.DeepEqual(byTLS.Facts, byStatement.Facts) || !byTLS.Nonce.IsZero() {
		t.Errorf("the claims are %+v and %+v", byTLS, byStatement)
	}
	if actor := byTLS.Actor.String(); actor != "x5c-tls:"+strings.TrimPrefix(byStatement.Actor.String(), "x5c:") {
		t.Errorf("the actors are %s and %s", actor, byStatement.Actor)
	}
	if _, err := pki.ParseEvidenceSubject("x5c-tls:" + strings.Repeat("0", 64)); err == nil {
		t.Error("a subject can have the kind x5c-tls")
	}

	f.revoke(t, "camera", "issuing")
	if err := crls.Replace([][]byte{f.crl(t, "issuing", now, now.Add(time.Hour))}); err != nil {
		t.Fatal(err)
	}
	claim, err := a.TLS().Identify(t.Context(), presented)
	if r, _ := pki.AsRefusal(err); r == nil || r.Rule != pki.RuleEvidenceRevoked || claim.Subject != byTLS.Subject {
		t.Errorf("a revoked device: %v of %s", err, claim.Subject)
	}
}

func TestTLSEvidenceIsBounded(t *testing.T) {
	t.Parallel()
	f := newFactory(t)
	a := newAuthenticator(t, f.acme(t)).TLS()
	for name, c := range map[string]struct {
		chain [][]byte
		rule  pki.Rule
	}{
		"none":              {nil, pki.RuleEvidenceMalformed},
		"an empty one":      {[][]byte{{}}, pki.RuleEvidenceMalformed},
		"nine":              {make([][]byte, 9), pki.RuleEvidenceSize},
		"a large one":       {[][]byte{make([]byte, 8<<10+1)}, pki.RuleEvidenceSize},
		"many large ones":   {[][]byte{make([]byte, 1<<20)}, pki.RuleEvidenceSize},
		"the issuing CA":    {f.chain(t, "issuing"), pki.RuleEvidenceUntrusted},
		"the root and more": {f.chain(t, "root", "issuing"), pki.RuleEvidenceMalformed},
	} {
		_, err := a.Identify(t.Context(), ra.Presented{Evidence: pki.X5CTLSEvidence{Certificates: c.chain}.Encode(), At: now})
		if r, _ := pki.AsRefusal(err); r == nil || r.Rule != c.rule {
			t.Errorf("%s: %v, want a refusal by %s", name, err, c.rule)
		}
	}
}
