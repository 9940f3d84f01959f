package enroll

import (
	"context"
	"fmt"
	"time"

	"github.com/brevet-pki/brevet/enroll/tpm"
	"github.com/brevet-pki/brevet/pki"
)

// expiredKey is Evidence with the key of an expired certificate.
type expiredKey struct {
	pair        *Pair
	certificate pki.CertRef
}

// ExpiredKey returns [Evidence] that the caller has the key of an expired certificate, for a server whose policy allows
// recoveries. The CSR must have a new key.
func ExpiredKey(expired *Pair) (Evidence, error) {
	serial, err := pki.SerialFromInt(expired.Certificate.SerialNumber)
	if err != nil {
		return nil, fmt.Errorf("the certificate is not from a Brevet server: %w", err)
	}
	if _, err := statementOptions(expired.Key.Public()); err != nil {
		return nil, err
	}
	issuer := expired.root
	if len(expired.Chain) > 0 {
		issuer = expired.Chain[0]
	}
	return expiredKey{expired, pki.CertRef{Issuer: pki.IssuerOf(issuer), Serial: serial}}, nil
}

// Kind implements Evidence.
func (expiredKey) Kind() pki.EvidenceKind { return pki.EvidenceRecovery }

// Subject returns the serial number of the certificate.
func (k expiredKey) Subject() string { return k.certificate.Serial.String() }

// Present implements Evidence.
func (k expiredKey) Present(ctx context.Context, p Presentation) (pki.Evidence, error) {
	challenge, err := p.Challenge(ctx, pki.EvidenceRecovery, nil)
	if err != nil {
		return pki.Evidence{}, err
	}
	statement := pki.RecoveryStatement(k.pair.ID().TrustDomain(), k.certificate, p.KeyHash, p.RequestID, challenge)
	signature, err := signStatement(k.pair.Key, statement)
	if err != nil {
		return pki.Evidence{}, fmt.Errorf("sign with the key of the expired certificate: %w", err)
	}
	e := pki.RecoveryEvidence{
		IssuerID: k.certificate.Issuer.Bytes(), Serial: k.certificate.Serial.Bytes(),
		PublicKey: k.pair.Certificate.RawSubjectPublicKeyInfo, Challenge: challenge, Signature: signature,
	}
	return pki.Evidence{Kind: pki.EvidenceRecovery, Value: e.Encode()}, nil
}

// recover sends a request with the key of an expired certificate, and installs the issued credential. If a renewal of the
// certificate is in progress, recover repeats it. The server may have issued its certificate before, so that it may have
// expired as well. Then its key is the newest one, and recover uses it for a second request.
func (a *Agent) recover(ctx context.Context, expired *Pair) error {
	a.config.Log.Info("recovering with the expired certificate", "identity", expired.ID().String(), "serial", expired.Serial())
	for range 2 {
		pair, err := a.recoverOnce(ctx, expired)
		if err != nil {
			return err
		}
		late := pair.Expired(a.now())
		if late && !expired.Expired(a.now()) {
			return fmt.Errorf("the issued certificate expired at %s by this machine's clock and is discarded: set the clock",
				pair.Certificate.NotAfter.Format(time.RFC3339))
		}
		if err := a.install(pair); err != nil || !late {
			return err
		}
		expired = pair
	}
	return fmt.Errorf("the issued certificate expired at %s by this machine's clock: set the clock",
		expired.Certificate.NotAfter.Format(time.RFC3339))
}

// recoverOnce sends one request with the key of an expired certificate, and returns the new pair.
func (a *Agent) recoverOnce(ctx context.Context, expired *Pair) (*Pair, error) {
	key, err := ExpiredKey(expired)
	if err != nil {
		return nil, err
	}
	r, csr, err := a.request("certificate " + expired.Serial())
	if err != nil {
		return nil, err
	}
	offered := [][]Evidence{{key}}
	if inTPM, ok := r.key.(*tpm.Key); ok && expired.Origin.Attested { // the enrollment can require a key in hardware
		attested, err := Attestation(inTPM.Device())
		if err != nil {
			return nil, err
		}
		offered = [][]Evidence{{key, attested}, {key}}
	}
	var c Credential
	for _, evidence := range offered {
		c, err = a.present(ctx, expired, r, csr, evidence)
		if refusal, _ := pki.AsRefusal(err); refusal == nil || refusal.Rule != pki.RulePolicy {
			break // there is a rule for this evidence
		}
	}
	if err != nil {
		return nil, a.refused(err)
	}
	pair, err := a.newPair(c, r, expired.Origin)
	if err != nil {
		return nil, err
	}
	return pair, a.succeeds(pair, expired)
}

// present sends a request for a recovery to the server of an expired certificate.
func (a *Agent) present(ctx context.Context, expired *Pair, r pending, csr []byte, evidence []Evidence) (Credential, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return a.config.Authority.Enroll(ctx, EnrollRequest{
		RequestID: r.id, CSR: csr, Key: r.key, Lifetime: a.config.Lifetime, Evidence: evidence, Expired: expired,
		Bootstrap: Bootstrap{TrustDomain: expired.ID().TrustDomain(), Server: expired.Origin.Server},
	})
}
