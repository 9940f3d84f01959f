package evidencetest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/evidencetest"
	"github.com/brevet-pki/brevet/ra/nonce"
	"github.com/brevet-pki/brevet/ra/recovery"
	"github.com/brevet-pki/brevet/store/memory"
)

// recoverySample is a device with a certificate that expired an hour ago.
func recoverySample(t testing.TB) evidencetest.Sample {
	records := &memory.Store{}
	id := ra.Identity{ID: must(pki.SPIFFEIDIn("fleet.example", "device/1"))(t), Kind: pki.Device, Profile: "device"}
	id = must(records.CreateIdentity(t.Context(), ra.Registration{Identity: id}, pki.ActorCommand("test")))(t)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	public := must(pki.MarshalKey(key.Public()))(t)
	r := ca.Record{
		Ref:      pki.CertRef{Issuer: must(pki.IssuerIDFromBytes(append(make([]byte, 31), 1)))(t), Serial: must(pki.SerialFromBytes(append(make([]byte, 19), 1)))(t)},
		Identity: id.ID, Profile: "device", KeyHash: pki.HashSPKI(public), IssuedAt: now.Add(-2 * time.Hour), NotBefore: now.Add(-2 * time.Hour),
		NotAfter: now.Add(-time.Hour), DER: []byte("certificate"), RequestID: must(pki.RequestIDFromBytes(append(make([]byte, 15), 1)))(t), Actor: pki.ActorCommand("test"),
	}
	r.Guard = pki.Guard{Key: r.KeyHash, Identity: id.ID, Revision: id.Revision, Enrolls: true}
	epoch, _, err := records.Begin(t.Context())
	intent := ca.Intent{Batch: ca.NewBatchID(), Items: []ca.IntentItem{{Ref: r.Ref, IssuedAt: r.IssuedAt, NotAfter: r.NotAfter}}}
	must(records.Write(t.Context(), must(epoch, err)(t), nil, []ca.Intent{intent}))(t)
	must(records.Write(t.Context(), epoch, []ca.BatchCommit{{Intent: intent, Records: []ca.Record{r}, At: r.IssuedAt}}, nil))(t)
	authenticator := func(sealingKey byte) *recovery.Authenticator {
		nonces := must(nonce.FromKey([32]byte{sealingKey}, [16]byte{}))(t)
		return must(recovery.New(recovery.Config{TrustDomain: "fleet.example", Store: records, Nonces: nonces, Grace: 24 * time.Hour, Times: 3}))(t)
	}
	return evidencetest.Sample{
		Kind: pki.EvidenceRecovery, Authenticator: authenticator(1), Foreign: authenticator(2),
		At: now, Expired: now.Add(nonce.Lifetime), Key: pki.HashSPKI([]byte("key")),
		Make: func(t testing.TB, q evidencetest.Request) []byte {
			digest := sha256.Sum256(pki.RecoveryStatement("fleet.example", r.Ref, q.Key, q.ID, q.Challenge))
			signature := must(key.Sign(rand.Reader, digest[:], crypto.SHA256))(t)
			return pki.RecoveryEvidence{
				IssuerID: r.Ref.Issuer.Bytes(), Serial: r.Ref.Serial.Bytes(), PublicKey: public, Challenge: q.Challenge, Signature: signature,
			}.Encode()
		},
	}
}
