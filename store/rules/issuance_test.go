package rules_test

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/rules"
)

var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func identity(t rapid.TB) pki.SPIFFEID {
	t.Helper()
	id, err := pki.ParseSPIFFEID("spiffe://fleet.example/device/1")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func certificate(t rapid.TB, n byte) pki.CertRef {
	t.Helper()
	serial, err := pki.MakeSerial(now, [pki.SerialRandomSize]byte{n})
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := pki.IssuerIDFromBytes(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return pki.CertRef{Issuer: issuer, Serial: serial}
}

// renewal returns the record of a renewal, and a state of the store that accepts it.
func renewal(t rapid.TB) (*ca.Record, *rules.Issuance) {
	t.Helper()
	request, err := pki.RequestIDFromBytes([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	id, old, key := identity(t), certificate(t, 1), pki.HashSPKI([]byte("key"))
	r := &ca.Record{
		Ref: certificate(t, 2), Identity: id, Profile: "device", KeyHash: key, IssuedAt: now, NotBefore: now, NotAfter: now.Add(time.Hour),
		RequestID: request, Actor: pki.ActorCaller(id, old), DER: []byte("certificate"),
		Guard: pki.Guard{Identity: id, Revision: 2, Key: key, Predecessor: old, MaxUnexpired: 6},
	}
	s := &rules.Issuance{
		Registered: true, State: pki.Enrolled, Revision: 2, Unexpired: 1,
		Predecessor: rules.Predecessor{
			Found: true, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), Status: pki.Status{State: pki.Good, Version: 1},
		},
	}
	return r, s
}

// withToken turns the renewal into an enrollment with a token.
func withToken(change func(t *ra.Token)) func(f fixture) {
	return func(f fixture) {
		r, s := f.Record, f.Issuance
		r.Guard.Predecessor, s.Predecessor, r.Actor = pki.CertRef{}, rules.Predecessor{}, pki.ActorSystem("test")
		r.Guard.Enrolls, s.State = true, pki.Registered
		token, _ := pki.TokenIDFromBytes(bytes.Repeat([]byte{1}, 32))
		r.Guard.Token = token
		s.Token = &ra.Token{
			ID: token, Identity: r.Identity, ExpiresAt: now.Add(time.Minute), Request: r.RequestID, Key: r.KeyHash,
		}
		change(s.Token)
	}
}

// withEvidence turns the renewal into an enrollment with evidence.
func withEvidence(change func(f fixture)) func(f fixture) {
	return func(f fixture) {
		f.Guard.Predecessor, f.Predecessor, f.Actor = pki.CertRef{}, rules.Predecessor{}, pki.ActorSystem("test")
		f.Guard.Enrolls, f.State = true, pki.Registered
		f.Guard.Subject = subject(1)
		f.Guard.Nonces = []pki.Nonce{{ID: [16]byte{1}, ExpiresAt: now.Add(time.Minute)}}
		change(f)
	}
}

func subject(n byte) pki.EvidenceSubject {
	return pki.EvidenceSubject{Kind: pki.EvidenceTPM, Hash: [32]byte{n}}
}

// fixture is a record to check and the state of the store.
type fixture struct {
	*ca.Record
	*rules.Issuance
}

func TestGuards(t *testing.T) {
	for name, c := range map[string]struct {
		change func(f fixture)
		want   pki.Rule // empty if it is accepted
	}{
		"as decided":                   {func(f fixture) {}, ""},
		"no identity":                  {func(f fixture) { *f.Issuance = rules.Issuance{} }, pki.RuleIdentity},
		"answered":                     {func(f fixture) { f.Answered, f.Revision = true, 3 }, pki.RuleRequestIDReused},
		"another revision":             {func(f fixture) { f.Revision = 3 }, pki.RuleIdentityStale},
		"suspended":                    {func(f fixture) { f.State = pki.Suspended }, pki.RuleIdentityState},
		"retired":                      {func(f fixture) { f.State = pki.Retired }, pki.RuleIdentityState},
		"no predecessor":               {func(f fixture) { f.Predecessor = rules.Predecessor{} }, pki.RuleRenewalUnknown},
		"predecessor on hold":          {func(f fixture) { f.Predecessor.Status.State = pki.Hold }, pki.RuleRevoked},
		"predecessor revoked":          {func(f fixture) { f.Predecessor.Status.State = pki.Revoked }, pki.RuleRevoked},
		"renewed with another key":     {func(f fixture) { f.Predecessor.Renewed = true }, pki.RuleRenewalKeyConflict},
		"renewed with the key":         {func(f fixture) { f.Predecessor.Renewed, f.Predecessor.SameKey = true, true }, pki.RuleIdentityStale},
		"predecessor expired":          {func(f fixture) { f.Predecessor.NotAfter = now.Add(-time.Second) }, pki.RuleExpired},
		"caller not enrolled":          {func(f fixture) { f.State = pki.Registered }, pki.RuleIdentityState},
		"key of a CA":                  {func(f fixture) { f.Key.Reserved = true }, pki.RuleKeyReserved},
		"key collides":                 {func(f fixture) { f.Key.Collides = true }, pki.RuleKeyInUse},
		"key compromised":              {func(f fixture) { f.Key.Compromised = true }, pki.RuleKeyCompromised},
		"key of another":               {func(f fixture) { f.Key.Foreign = true }, pki.RuleKeyInUse},
		"compromised key of another":   {func(f fixture) { f.Key.Foreign, f.Key.Compromised = true, true }, pki.RuleKeyCompromised},
		"one below the bound":          {func(f fixture) { f.Unexpired = 5 }, ""},
		"at the bound":                 {func(f fixture) { f.Unexpired = 6 }, pki.RuleMaxUnexpired},
		"without a bound":              {func(f fixture) { f.Guard.MaxUnexpired, f.Unexpired = 0, 100 }, ""},
		"a token":                      {withToken(func(*ra.Token) {}), ""},
		"no token":                     {func(f fixture) { withToken(func(*ra.Token) {})(f); f.Token = nil }, pki.RuleToken},
		"token spent":                  {withToken(func(t *ra.Token) { t.Spent = true }), pki.RuleToken},
		"token expired":                {withToken(func(t *ra.Token) { t.ExpiresAt = now }), pki.RuleToken},
		"token revoked":                {withToken(func(t *ra.Token) { t.RevokedBecause = "why" }), pki.RuleTokenRevoked},
		"token bound to a request":     {withToken(func(t *ra.Token) { t.Request = pki.RequestID{} }), pki.RuleTokenBound},
		"token bound to a key":         {withToken(func(t *ra.Token) { t.Key = pki.KeyHash{} }), pki.RuleTokenBound},
		"evidence":                     {withEvidence(func(fixture) {}), ""},
		"evidence of the identity":     {withEvidence(func(f fixture) { f.Subject = subject(1) }), ""},
		"evidence of another device":   {withEvidence(func(f fixture) { f.Subject = subject(2) }), pki.RuleEvidenceConflict},
		"conflict after a change":      {withEvidence(func(f fixture) { f.Subject, f.Revision = subject(2), 3 }), pki.RuleEvidenceConflict},
		"evidence of another identity": {withEvidence(func(f fixture) { f.Holder = f.Identity }), pki.RuleEvidenceConflict},
		"nonce used":                   {withEvidence(func(f fixture) { f.NonceUsed = true }), pki.RuleChallengeUsed},
		"nonce twice":                  {withEvidence(func(f fixture) { f.Guard.Nonces = append(f.Guard.Nonces, f.Guard.Nonces[0]) }), pki.RuleChallengeUsed},
		"nonce expired":                {withEvidence(func(f fixture) { f.Guard.Nonces[0].ExpiresAt = now }), pki.RuleChallengeExpired},
		"nonce used and expired": {withEvidence(func(f fixture) {
			f.Guard.Nonces[0].ExpiresAt, f.NonceUsed = now, true
		}), pki.RuleChallengeExpired},
		"decided for another identity": {func(f fixture) { f.Guard.Identity = pki.SPIFFEID{}; f.Guard.Enrolls = true }, pki.RuleIdentity},
		"a clone after superseding": {func(f fixture) {
			f.Predecessor.Renewed, f.Predecessor.Superseded, f.Predecessor.Status.State = true, true, pki.Revoked
		}, pki.RuleRenewalKeyConflict},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := renewal(t)
			c.change(fixture{r, s})
			_, refusal := s.Check(r, now)
			switch {
			case c.want == "" && refusal != nil:
				t.Errorf("refused: %v", refusal)
			case c.want != "" && (refusal == nil || refusal.Rule != c.want):
				t.Errorf("got %v, want a refusal with the rule %s", refusal, c.want)
			}
		})
	}
}

func TestEffects(t *testing.T) {
	r, s := renewal(t)
	e, _ := s.Check(r, now)
	if !e.Succeeds || e.KeyUses() != 2 || e.Superseded.Status.State != 0 {
		t.Errorf("the effects of a first renewal are %+v", e)
	}
	r, s = renewal(t)
	r.Guard.Renewed, s.Predecessor.Renewed, s.Predecessor.SameKey = true, true, true
	e, refusal := s.Check(r, now)
	if refusal != nil || e.Succeeds || e.KeyUses() != 1 {
		t.Errorf("the effects of a repeated renewal are %+v, %v", e, refusal)
	}
	r, s = renewal(t)
	r.Guard.Supersedes = true
	e, _ = s.Check(r, now.Add(time.Millisecond))
	want := pki.Status{State: pki.Revoked, Reason: pki.Superseded, RevokedAt: now, Version: 2}
	if e.Superseded.Ref != r.Guard.Predecessor || e.Superseded.Status != want {
		t.Errorf("the predecessor becomes %+v, want %+v", e.Superseded, want)
	}
	entry := rules.IssuedEntry(r, now, e.Superseded)
	if len(entry.Changes) != 2 || entry.Changes[0].Ref != r.Ref || entry.Facts()["predecessor"] != r.Guard.Predecessor.Serial.String() {
		t.Errorf("the log has %+v", entry)
	}
	if _, err := entry.Marshal(); err != nil {
		t.Error(err)
	}
}

// TestAcceptedRecordsSatisfyGuard checks that Check accepts a record only if every condition of its guard holds, for many
// states of the store.
func TestAcceptedRecordsSatisfyGuard(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, s := renewal(t)
		flag := func(name string) bool { return rapid.Bool().Draw(t, name) }
		s.State = pki.IdentityState(rapid.IntRange(1, 4).Draw(t, "state"))
		s.Revision = rapid.Uint64Range(1, 3).Draw(t, "revision")
		s.Answered, s.Unexpired = flag("answered"), rapid.IntRange(0, 8).Draw(t, "unexpired")
		s.Key = rules.Key{Reserved: flag("reserved"), Collides: flag("collides"), Compromised: flag("compromised"), Foreign: flag("foreign")}
		p := &s.Predecessor
		p.Found, p.Renewed, p.SameKey, p.Superseded = flag("found"), flag("renewed"), flag("same key"), flag("superseded")
		p.Status.State = pki.State(rapid.IntRange(1, 3).Draw(t, "status"))
		r.Guard.Renewed, r.Guard.Supersedes = flag("decided as renewed"), flag("supersedes")
		e, refusal := s.Check(r, now)
		holds := s.State == pki.Enrolled && s.Revision == r.Guard.Revision && !s.Answered && s.Unexpired < r.Guard.MaxUnexpired &&
			s.Key == rules.Key{} && p.Found && p.Status.State == pki.Good && (!p.Renewed || p.SameKey && r.Guard.Renewed)
		if (refusal == nil) != holds {
			t.Fatalf("%+v is refused: %v", s, refusal)
		}
		if refusal == nil && (e.Succeeds == p.Renewed || r.Guard.Supersedes != (e.Superseded.Status.Version == p.Status.Version+1)) {
			t.Fatalf("%+v has the effects %+v", s, e)
		}
	})
}

func TestInvalidRecords(t *testing.T) {
	r, _ := renewal(t)
	if refusal := rules.CheckRecord(r); refusal != nil {
		t.Error(refusal)
	}
	other := *r
	other.Guard.Key = pki.KeyHash{}
	r.RequestID = pki.RequestID{}
	tied := *r
	tied.RequestID, tied.Guard.Subject = other.RequestID, subject(1)
	for _, r := range []*ca.Record{r, &other, &tied} {
		if refusal := rules.CheckRecord(r); refusal == nil || refusal.Rule != pki.RuleRequest {
			t.Errorf("got %v, want a refusal with the rule %s", refusal, pki.RuleRequest)
		}
	}
}

// A server gets the certificate of the OCSP delegate that has its name, from the CA in the delegate's identity.
func TestDelegateOf(t *testing.T) {
	t.Parallel()
	ref := certificate(t, 1)
	other := ref
	other.Issuer, _ = pki.IssuerIDFromBytes(bytes.Repeat([]byte{2}, 32)) // 32 bytes are an ID
	own := func(issuer pki.IssuerID, trustDomain, name string) pki.SPIFFEID {
		id, err := pki.VAID(trustDomain, issuer, name)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	for name, c := range map[string]struct {
		caller string
		of     pki.SPIFFEID
		want   string
	}{
		"its own":                 {"brevet/server/b", own(ref.Issuer, "fleet.example", "b"), "b"},
		"of another server":       {"brevet/server/b", own(ref.Issuer, "fleet.example", "a"), ""},
		"of another CA":           {"brevet/server/b", own(other.Issuer, "fleet.example", "b"), ""},
		"of another trust domain": {"brevet/server/b", own(ref.Issuer, "other.example", "b"), ""},
		"of the only server":      {"brevet/server", own(ref.Issuer, "fleet.example", ""), ""},
		"a device":                {"device/b", own(ref.Issuer, "fleet.example", "b"), ""},
		"an operator":             {"brevet/operator/b", own(ref.Issuer, "fleet.example", "b"), ""},
		"a delegate":              {"brevet/va/b", own(ref.Issuer, "fleet.example", "b"), ""},
		"another identity":        {"brevet/server/b", identity(t), ""},
	} {
		id, err := pki.SPIFFEIDIn("fleet.example", c.caller)
		if err != nil {
			t.Fatal(err)
		}
		record := &ca.Record{Ref: ref, Identity: c.of, Profile: "ocsp", Actor: pki.ActorCaller(id, ref)}
		if got := rules.DelegateOf(record); got != c.want {
			t.Errorf("%s: DelegateOf returns %q, want %q", name, got, c.want)
		}
		record.Profile = "server"
		if got := rules.DelegateOf(record); got != "" {
			t.Errorf("%s, with the profile of servers: DelegateOf returns %q", name, got)
		}
	}
}
