package translog

import (
	"encoding/base64"
	"errors"
	"time"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// CreatedExternalKey is the event of [ACMEExternalKeyCreated]. The identity of the entry is that of the key. It is zero if
// the key names a rule.
type CreatedExternalKey struct {
	ID                 ACMEID
	Rule               string
	ExpiresAt          time.Time
	CreatorCertificate pki.CertRef // zero if a part of Brevet created the key
}

// RevokedExternalKey is the event of [ACMEExternalKeyRevoked]. Without an ID, all unused keys that the entry's identity
// created were revoked.
type RevokedExternalKey struct {
	ID      ACMEID
	Cause   string // the reason that refusals of the keys state
	Comment string
}

// ACMEAccount is the event of [ACMEAccountCreated], [ACMEAccountKeyChanged], [ACMEAccountDeactivated] and
// [ACMEAccountRevoked].
type ACMEAccount struct {
	ID ACMEID
	// Key is the SubjectPublicKeyInfo in DER, and Thumbprint that of RFC 7638. They are zero if the account was deactivated or
	// revoked.
	Key        []byte
	Thumbprint Hash
	// ExternalKey is the external key that the account used up; zero for none.
	ExternalKey ACMEID
	Comment     string // of the operator who revoked it
}

// ACMEID is the ID of an account or an external key of ACME. The zero value is none.
type ACMEID [16]byte

// bytes returns the bytes, and nil for the zero value.
func (id ACMEID) bytes() []byte {
	if id == (ACMEID{}) {
		return nil
	}
	return id[:]
}

// addACMEID adds an ID that is not zero, in the format of acme.ID.String.
func (f facts) addACMEID(name string, id ACMEID) {
	if id != (ACMEID{}) {
		f[name] = base64.RawURLEncoding.EncodeToString(id[:])
	}
}

func (k *CreatedExternalKey) facts(f facts) {
	f.addACMEID("external_key", k.ID)
	f.add("policy_rule", k.Rule)
	f.addTime("expires", k.ExpiresAt)
	f.addID("creator_serial", k.CreatorCertificate.Serial)
}

func (r *RevokedExternalKey) facts(f facts) {
	f.addACMEID("external_key", r.ID)
	f.add("cause", r.Cause)
	f.add("comment", r.Comment)
}

func (a *ACMEAccount) facts(f facts) {
	f.addACMEID("account", a.ID)
	if a.Thumbprint != (Hash{}) {
		f["thumbprint"] = base64.RawURLEncoding.EncodeToString(a.Thumbprint[:])
	}
	f.addACMEID("external_key", a.ExternalKey)
	f.add("comment", a.Comment)
}

func (k *CreatedExternalKey) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_CreatedExternalKey{CreatedExternalKey: &brevetv1.CreatedExternalKey{
		KeyId: k.ID.bytes(), Rule: k.Rule, ExpireTime: millis(k.ExpiresAt),
		CreatorIssuerId: bytesOf(k.CreatorCertificate.Issuer), CreatorSerial: bytesOf(k.CreatorCertificate.Serial),
	}}
}

func (r *RevokedExternalKey) encode(m *brevetv1.LogEntry, _ time.Time) {
	m.Event = &brevetv1.LogEntry_RevokedExternalKey{RevokedExternalKey: &brevetv1.RevokedExternalKey{
		KeyId: r.ID.bytes(), Cause: r.Cause, Comment: r.Comment,
	}}
}

func (a *ACMEAccount) encode(m *brevetv1.LogEntry, _ time.Time) {
	out := &brevetv1.ACMEAccountRecord{AccountId: a.ID.bytes(), Key: a.Key, ExternalKeyId: a.ExternalKey.bytes(), Comment: a.Comment}
	if a.Thumbprint != (Hash{}) {
		out.Thumbprint = a.Thumbprint[:]
	}
	m.Event = &brevetv1.LogEntry_AcmeAccount{AcmeAccount: out}
}

// acmeID decodes an ID that may be unset.
func (d *decoder) acmeID(b []byte) ACMEID {
	var id ACMEID
	if len(b) != 0 && len(b) != len(id) {
		d.fail(errors.New("an ID of ACME has not 16 bytes"))
	}
	copy(id[:], b)
	return id
}

// requireACMEID decodes an ID.
func (d *decoder) requireACMEID(b []byte) ACMEID {
	id := d.acmeID(b)
	if id == (ACMEID{}) {
		d.fail(errors.New("an ID of ACME is missing"))
	}
	return id
}

func (d *decoder) createdExternalKey(m *brevetv1.CreatedExternalKey) *CreatedExternalKey {
	return &CreatedExternalKey{
		ID: d.requireACMEID(m.GetKeyId()), Rule: m.GetRule(), ExpiresAt: d.requireTime(m.GetExpireTime()),
		CreatorCertificate: d.ref(m.GetCreatorIssuerId(), m.GetCreatorSerial()),
	}
}

func (d *decoder) acmeAccount(m *brevetv1.ACMEAccountRecord) *ACMEAccount {
	a := &ACMEAccount{
		ID: d.requireACMEID(m.GetAccountId()), Key: m.GetKey(), ExternalKey: d.acmeID(m.GetExternalKeyId()), Comment: m.GetComment(),
	}
	if len(m.GetKey()) > 0 {
		a.Thumbprint = d.hashOf(m.GetThumbprint())
	}
	return a
}
