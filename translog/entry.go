package translog

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Action names what an entry records.
type Action string

// The actions. Their names are part of the log's format: they do not change.
const (
	CAInstalled          Action = "ca.installed"
	IdentityRegistered   Action = "identity.registered"
	IdentityUpdated      Action = "identity.updated"
	IdentitySuspended    Action = "identity.suspended"
	IdentityResumed      Action = "identity.resumed"
	IdentityRetired      Action = "identity.retired"
	IdentityReplaced     Action = "identity.replaced"
	TokenCreated         Action = "token.created"
	TokenBound           Action = "token.bound"
	CertificateIssued    Action = "certificate.issued"
	CertificateAbandoned Action = "certificate.abandoned" // intended or signed, never released, revoked
	CertificateRevoked   Action = "certificate.revoked"
	CertificateHeld      Action = "certificate.held"
	CertificateReleased  Action = "certificate.released" // from hold
	CRLPublished         Action = "crl.published"
	RequestRefused       Action = "request.refused"
	RecordsExpired       Action = "records.expired" // of what ended long ago, from the store
)

// Outcome says whether what an entry records took place.
type Outcome string

// An entry records what was done or what was refused.
const (
	Done    Outcome = "done"
	Refused Outcome = "refused"
)

// Entry is one change of state, or one refused attempt at it.
type Entry struct {
	Time     time.Time
	Actor    pki.Actor
	Action   Action
	Outcome  Outcome
	Identity pki.SPIFFEID       // zero where none is concerned
	Changes  []pki.StatusChange // the certificate statuses that changed
	Facts    map[string]string  // further facts, never a secret
}

// Marshal encodes the entry as the log hashes and keeps it: a brevet.v1.LogEntry in deterministic protobuf. What
// ParseEntry could not read back, or is longer than MaxEntrySize, is refused: the log would keep it for ever.
func (e Entry) Marshal() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("translog: encode entry: %w", err)
	}
	m := &brevetv1.LogEntry{
		Time: timestamppb.New(e.Time), Actor: e.Actor.String(), Action: string(e.Action),
		Outcome: string(e.Outcome), Facts: e.Facts,
	}
	if !e.Identity.IsZero() {
		m.Identity = e.Identity.String()
	}
	for _, c := range e.Changes {
		sc := &brevetv1.StatusChange{
			Issuer: c.Ref.Issuer.Bytes(), Serial: c.Ref.Serial.Bytes(), NotAfter: timestamppb.New(c.NotAfter),
			Version: c.Status.Version, Kind: brevetv1.StatusKind(c.Status.State), Fingerprint: c.Fingerprint,
		}
		if c.Status.State != pki.Good {
			sc.Reason, sc.RevokedAt = uint32(c.Status.Reason), timestamppb.New(c.Status.RevokedAt)
		}
		m.Changes = append(m.Changes, sc)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("translog: encode entry: %w", err)
	}
	if len(b) > MaxEntrySize {
		return nil, fmt.Errorf("translog: encode entry: it has %d octets, more than %d: record the change in parts", len(b), MaxEntrySize)
	}
	return b, nil
}

func (e Entry) check() error {
	if e.Action == "" {
		return errors.New("it has no action")
	}
	if e.Outcome != Done && e.Outcome != Refused {
		return fmt.Errorf("%q is not an outcome", string(e.Outcome))
	}
	for _, c := range e.Changes {
		if c.Ref.Issuer.IsZero() || c.Ref.Serial.IsZero() {
			return errors.New("a status change names no certificate")
		}
		if c.Status.State < pki.Good || c.Status.State > pki.Revoked {
			return fmt.Errorf("the status change of certificate %s has no state", c.Ref.Serial)
		}
	}
	return nil
}

// ParseEntry reads what Marshal wrote.
func ParseEntry(b []byte) (Entry, error) {
	var m brevetv1.LogEntry
	if err := proto.Unmarshal(b, &m); err != nil {
		return Entry{}, fmt.Errorf("translog: decode entry: %w", err)
	}
	e := Entry{
		Time: m.GetTime().AsTime(), Actor: pki.ActorFromText(m.GetActor()), Action: Action(m.GetAction()),
		Outcome: Outcome(m.GetOutcome()), Facts: m.GetFacts(),
	}
	if m.GetIdentity() != "" {
		id, err := pki.ParseSPIFFEID(m.GetIdentity())
		if err != nil {
			return Entry{}, fmt.Errorf("translog: decode entry: %w", err)
		}
		e.Identity = id
	}
	for _, sc := range m.GetChanges() {
		c, err := parseChange(sc)
		if err != nil {
			return Entry{}, fmt.Errorf("translog: decode entry: %w", err)
		}
		e.Changes = append(e.Changes, c)
	}
	return e, nil
}

func parseChange(sc *brevetv1.StatusChange) (pki.StatusChange, error) {
	issuer, err := pki.IssuerIDFromBytes(sc.GetIssuer())
	if err != nil {
		return pki.StatusChange{}, err
	}
	serial, err := pki.SerialFromBytes(sc.GetSerial())
	if err != nil {
		return pki.StatusChange{}, err
	}
	c := pki.StatusChange{
		Ref:         pki.CertRef{Issuer: issuer, Serial: serial},
		NotAfter:    sc.GetNotAfter().AsTime(),
		Status:      pki.Status{Version: sc.GetVersion()},
		Fingerprint: sc.GetFingerprint(),
	}
	switch sc.GetKind() {
	case brevetv1.StatusKind_STATUS_KIND_GOOD:
		c.Status.State = pki.Good
		return c, nil
	case brevetv1.StatusKind_STATUS_KIND_HOLD:
		c.Status.State = pki.Hold
	case brevetv1.StatusKind_STATUS_KIND_REVOKED:
		c.Status.State = pki.Revoked
	default:
		return pki.StatusChange{}, fmt.Errorf("unknown status kind %d", sc.GetKind())
	}
	c.Status.RevokedAt = sc.GetRevokedAt().AsTime()
	c.Status.Reason, err = pki.ReasonFromCode(int(sc.GetReason()))
	return c, err
}

// Hash is a SHA-256 chain value. The zero value stands before the first entry.
type Hash [sha256.Size]byte

// String formats the hash as hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Chain returns the chain value after an entry: SHA-256(0x01 ‖ value before ‖ SHA-256(0x00 ‖ entry)). The two prefixes
// keep an entry from being mistaken for a chain value, as in RFC 6962 §2.1.
func Chain(before Hash, entry []byte) Hash {
	leaf := sha256.New()
	leaf.Write([]byte{0x00})
	leaf.Write(entry)
	h := sha256.New()
	h.Write([]byte{0x01})
	h.Write(before[:])
	h.Write(leaf.Sum(nil))
	return Hash(h.Sum(nil))
}
