package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// recoveringCA is a test CA that lets agents recover. It verifies their evidence like a server.
type recoveringCA struct {
	*testCA
	refusal error // of recoveries; nil to allow them
	asked   []pki.RequestID
}

func (ca *recoveringCA) Enroll(ctx context.Context, r EnrollRequest) (Credential, error) {
	if r.Evidence[0].Kind() != pki.EvidenceRecovery {
		return ca.testCA.Enroll(ctx, r)
	}
	made, err := r.Present(ctx, ca)
	if err != nil {
		return Credential{}, err
	}
	return ca.handle(ctx, func() (Credential, error) {
		ca.asked = append(ca.asked, r.RequestID)
		if ca.refusal != nil {
			return Credential{}, ca.refusal
		}
		csr, err := x509.ParseCertificateRequest(r.CSR)
		if err != nil {
			return Credential{}, err
		}
		e, err := pki.ParseRecoveryEvidence(made[0].Value)
		if err != nil {
			return Credential{}, err
		}
		serial, err := pki.SerialFromBytes(e.Serial)
		if err != nil {
			return Credential{}, err
		}
		key, err := x509.ParsePKIXPublicKey(e.PublicKey)
		if err != nil {
			return Credential{}, err
		}
		statement := pki.RecoveryStatement(testDomain, pki.CertRef{Issuer: pki.IssuerOf(ca.issuer), Serial: serial},
			pki.HashSPKI(csr.RawSubjectPublicKeyInfo), r.RequestID, e.Challenge)
		if ca.challenges[string(e.Challenge)] != r.RequestID || !pki.VerifyStatement(key, statement, e.Signature) {
			return Credential{}, errors.New("the signature does not verify")
		}
		id, err := pki.SPIFFEIDIn(testDomain, "device/1")
		if err != nil {
			return Credential{}, err
		}
		if err := ca.bind("recovery "+serial.String(), r.RequestID, r.CSR, pki.RuleRequestIDReused); err != nil {
			return Credential{}, err
		}
		return ca.issue(id, r.RequestID, r.CSR, r.Lifetime)
	})
}

// inRecovery runs an agent that has enrolled with its token, and that has no other token.
func inRecovery(t *testing.T, refusal error, body func(b *harness, ca *recoveringCA)) {
	t.Helper()
	var ca *recoveringCA
	inSynctest(t, func(b *harness) {
		ca = &recoveringCA{testCA: b.ca, refusal: refusal}
		b.config.Authority = ca
	}, func(b *harness) {
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		body(b, ca)
	})
}

func TestAgentRecovers(t *testing.T) {
	inRecovery(t, nil, func(b *harness, _ *recoveringCA) {
		first := b.agent.Pair()
		b.advance(24 * time.Hour)
		b.restart()
		if err := b.agent.Ensure(b.Context()); err != nil {
			t.Fatal(err)
		}
		p := b.agent.Pair()
		if p.Expired(time.Now()) || p.ID() != first.ID() || p.Origin.Token != first.Origin.Token {
			t.Errorf("the agent has %s until %s", p.ID(), p.Certificate.NotAfter)
		}
		if reflect.DeepEqual(p.Key.Public(), first.Key.Public()) {
			t.Error("the agent has used its key again")
		}
	})
}

// The server refuses to let the agent recover. The agent says so, keeps what it has, and asks for a token.
func TestAgentReportsARefusedRecovery(t *testing.T) {
	inRecovery(t, pki.Refuse(pki.RulePolicy, "ask the operator", "no rule matches"), func(b *harness, ca *recoveringCA) {
		first := b.agent.Pair()
		b.advance(2 * time.Hour)
		err := b.agent.Run(b.Context())
		if !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "the server does not let it recover (no rule matches [policy.no_rule])") ||
			!strings.Contains(err.Error(), "ask an operator for an enrollment token") {
			t.Errorf("Run: %v", err)
		}
		if b.agent.Pair() != first {
			t.Error("the agent has another credential")
		}
		ca.set(func() { ca.refusal = nil })
		if err := b.agent.Ensure(b.Context()); err != nil || len(ca.asked) != 2 || ca.asked[0] != ca.asked[1] {
			t.Errorf("a later try: %v, with the requests %v; want one request", err, ca.asked)
		}
	})
}

// While the server is not reachable, the agent retries.
func TestAgentRetriesARecovery(t *testing.T) {
	inRecovery(t, nil, func(b *harness, ca *recoveringCA) {
		b.advance(2 * time.Hour)
		ca.set(func() { ca.before = func() error { return &callErrorForTest } })
		b.run()
		b.advance(time.Hour)
		if f := b.status().Failure; f == nil || f.Final || f.Tries < 2 || !strings.Contains(f.Error, "recovering with its key failed") {
			t.Errorf("the status is %+v", f)
		}
		ca.set(func() { ca.before = nil })
		b.advance(10 * time.Minute)
		if err := b.stop(); err != nil || b.agent.Pair().Expired(time.Now()) {
			t.Errorf("the agent has not recovered: %v", err)
		}
	})
}

// The clock of the device is behind. The server refuses to renew its certificate, which has expired by the server's clock.
func TestAgentRecoversByTheServersClock(t *testing.T) {
	inRecovery(t, nil, func(b *harness, ca *recoveringCA) {
		first := b.agent.Pair()
		b.clockOffset.Store(-int64(30 * time.Minute))
		b.run()
		b.advance(80 * time.Minute)
		if err := b.stop(); err != nil || len(ca.asked) == 0 || b.agent.Pair() == first {
			t.Errorf("the agent has not recovered: %v", err)
		}
	})
}

// A server returns only certificates that have expired by the agent's clock. The agent does not repeat its requests without
// end, and never replaces a valid certificate by them.
func TestAgentGetsOnlyExpiredCertificates(t *testing.T) {
	inRecovery(t, nil, func(b *harness, ca *recoveringCA) {
		b.clockOffset.Store(int64(24 * time.Hour))
		err := b.agent.Ensure(b.Context())
		if err == nil || !strings.Contains(err.Error(), "set the clock") || len(ca.asked) != 2 {
			t.Errorf("after %d requests: %v", len(ca.asked), err)
		}
	})
}

// The server refuses the recovery, and then the enrollment with other evidence. The agent reports both refusals.
func TestAgentReportsBothRefusals(t *testing.T) {
	refusal := pki.Refuse(pki.RuleRecoveryLimit, "an operator creates a token", "the identity has recovered too often")
	inRecovery(t, refusal, func(b *harness, _ *recoveringCA) {
		b.config.Bootstrap = b.token.Load().Bootstrap
		b.config.Token = nil
		b.config.Evidence = func() ([]Evidence, error) { return []Evidence{presented{pki.Evidence{Kind: pki.EvidenceTPM}}}, nil }
		b.advance(2 * time.Hour)
		b.restart()
		err := b.agent.Ensure(b.Context())
		const both = "; recovering with the expired certificate had failed before (the identity has recovered too often [recovery.limit])"
		if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RulePolicy || !strings.HasSuffix(err.Error(), both) {
			t.Errorf("Ensure: %v", err)
		}
		if f := b.status().Failure; f == nil || f.Rule != pki.RulePolicy || !strings.HasSuffix(f.Error, both) {
			t.Errorf("the status is %+v", f)
		}
		for _, text := range []string{
			`level=INFO msg="recovering with the expired certificate"`, "rule=recovery.limit", `hint="an operator creates a token"`,
			`level=WARN msg="recovering with the expired certificate failed, enrolling with other evidence"`,
		} {
			if !strings.Contains(b.log.String(), text) {
				t.Errorf("the log has no %s:\n%s", text, b.log)
			}
		}
	})
}
