package translog

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Outcome says whether the recorded action was done or refused.
type Outcome string

// The outcomes of an action.
const (
	Done    Outcome = "done"
	Refused Outcome = "refused"
)

// Entry records one change of state, or one refused request for it. Times have millisecond precision, as in the store.
type Entry struct {
	Time     time.Time
	Actor    pki.Actor
	Action   Action
	Outcome  Outcome
	Identity pki.SPIFFEID       // the identity concerned; zero if there is none
	Changes  []pki.StatusChange // changed certificate statuses
	// RequestID is the request ID that the caller drew. If it is zero, the entry has that of the actor, if there is one.
	RequestID pki.RequestID
	// Event is what else was recorded, or nil. It holds no secret.
	Event Event
}

const scheme = "spiffe://" // prefix of every SPIFFE ID, omitted in the encoding

// Marshal encodes the entry as the log hashes and stores it: as a brevet.v1.LogEntry in deterministic protobuf. It
// returns an error if ParseEntry could not read the encoding or it exceeds MaxEntrySize, because the log keeps entries
// forever.
func (e Entry) Marshal() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("encode entry: %w", err)
	}
	action, _ := e.Action.number() // check made sure that it exists
	m := &brevetv1.LogEntry{
		Time: e.Time.UnixMilli(), Action: action, Refused: e.Outcome == Refused, Identity: strings.TrimPrefix(e.Identity.String(), scheme),
	}
	if e.Actor.Named() != pki.ActorIdentity(e.Identity) {
		m.Actor = e.Actor.String()
	}
	m.RequestId = bytesOf(e.RequestID)
	if e.RequestID.IsZero() {
		m.RequestId = bytesOf(e.Actor.Request().ID)
	}
	for _, c := range e.Changes {
		m.Changes = append(m.Changes, encodeChange(c))
	}
	if e.Event != nil {
		e.Event.encode(m, e.Time)
		if _, err := parseEvent(m, e.Time); err != nil {
			return nil, fmt.Errorf("encode entry: %w", err)
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode entry: %w", err)
	}
	if len(b) > MaxEntrySize {
		return nil, fmt.Errorf("encode entry: it has %d bytes, more than %d: record the change in parts",
			len(b), MaxEntrySize)
	}
	return b, nil
}

func encodeChange(c pki.StatusChange) *brevetv1.StatusChange {
	sc := &brevetv1.StatusChange{
		IssuerId: c.Ref.Issuer.Bytes(), Serial: c.Ref.Serial.Bytes(), NotAfter: c.NotAfter.UnixMilli(), Fingerprint: c.Fingerprint,
	}
	if len(c.Fingerprint) > 0 && c.Status.State == pki.Good && c.Status.Version == 1 {
		return sc // a newly issued certificate; parseStatus restores the other fields
	}
	sc.State, sc.Version = brevetv1.CertificateState(c.Status.State), int64(c.Status.Version) //nolint:gosec // counts changes
	if c.Status.State != pki.Good {
		sc.Reason, sc.RevokeTime = brevetv1.RevocationReason(c.Status.Reason), c.Status.RevokedAt.UnixMilli()
	}
	return sc
}

// check returns an error if ParseEntry would refuse the entry.
func (e Entry) check() error {
	if _, ok := e.Action.number(); !ok {
		return fmt.Errorf("%q is not an action", string(e.Action))
	}
	if e.Outcome != Done && e.Outcome != Refused {
		return fmt.Errorf("%q is not an outcome", string(e.Outcome))
	}
	if err := checkTime(e.Time); err != nil {
		return err
	}
	for _, c := range e.Changes {
		if err := checkChange(c); err != nil {
			return err
		}
	}
	return nil
}

func checkChange(c pki.StatusChange) error {
	if c.Ref.Issuer.IsZero() || c.Ref.Serial.IsZero() {
		return errors.New("a status change names no certificate")
	}
	if c.Status.State < pki.Good || c.Status.State > pki.Revoked {
		return fmt.Errorf("the status change of certificate %s has no state", c.Ref.Serial)
	}
	if c.Status.Version > math.MaxInt64 {
		return fmt.Errorf("the status change of certificate %s has the version %d", c.Ref.Serial, c.Status.Version)
	}
	if err := checkTime(c.NotAfter); err != nil || c.Status.State == pki.Good {
		return err
	}
	if _, err := pki.ReasonFromCode(int(c.Status.Reason)); err != nil {
		return err
	}
	return checkTime(c.Status.RevokedAt)
}

// checkTime returns an error for a time that RFC 3339 cannot represent, because readers print times.
func checkTime(t time.Time) error {
	if year := t.UTC().Year(); year < 1 || year > 9999 {
		return fmt.Errorf("the year %d is not between 1 and 9999", year)
	}
	return nil
}

// ParseEntry decodes the output of Marshal. It refuses unknown actions: without knowing an action, a reader cannot know
// what the entry means for certificates.
func ParseEntry(b []byte) (Entry, error) {
	var m brevetv1.LogEntry
	if err := proto.Unmarshal(b, &m); err != nil {
		return Entry{}, fmt.Errorf("decode entry: %w", err)
	}
	return EntryOf(&m)
}

// EntryOf returns the entry of a message, as ParseEntry does.
func EntryOf(m *brevetv1.LogEntry) (Entry, error) {
	e, err := parse(m)
	if err != nil {
		return Entry{}, fmt.Errorf("decode entry: %w", err)
	}
	return e, nil
}

func parse(m *brevetv1.LogEntry) (Entry, error) {
	action, ok := actionOf(m.GetAction())
	if !ok {
		return Entry{}, fmt.Errorf("action %d is unknown: use the version of brevet that wrote it", m.GetAction())
	}
	e := Entry{Action: action, Outcome: Done}
	if m.GetRefused() {
		e.Outcome = Refused
	}
	var err error
	if e.Time, err = parseTime(m.GetTime()); err != nil {
		return Entry{}, err
	}
	if m.GetIdentity() != "" {
		if e.Identity, err = pki.ParseSPIFFEID(scheme + m.GetIdentity()); err != nil {
			return Entry{}, err
		}
	}
	e.Actor = pki.ActorIdentity(e.Identity)
	if m.GetActor() != "" {
		e.Actor = pki.ActorFromText(m.GetActor())
	}
	var d decoder
	if e.RequestID = optional(&d, m.GetRequestId(), pki.RequestIDFromBytes); d.err != nil {
		return Entry{}, d.err
	}
	if e.Event, err = parseEvent(m, e.Time); err != nil {
		return Entry{}, err
	}
	for _, sc := range m.GetChanges() {
		c, err := parseChange(sc)
		if err != nil {
			return Entry{}, err
		}
		e.Changes = append(e.Changes, c)
	}
	return e, nil
}

func parseTime(ms int64) (time.Time, error) {
	t := time.UnixMilli(ms).UTC()
	return t, checkTime(t)
}

func parseChange(sc *brevetv1.StatusChange) (pki.StatusChange, error) {
	issuer, err := pki.IssuerIDFromBytes(sc.GetIssuerId())
	if err != nil {
		return pki.StatusChange{}, err
	}
	serial, err := pki.SerialFromBytes(sc.GetSerial())
	if err != nil {
		return pki.StatusChange{}, err
	}
	c := pki.StatusChange{Ref: pki.CertRef{Issuer: issuer, Serial: serial}, Fingerprint: sc.GetFingerprint()}
	if c.NotAfter, err = parseTime(sc.GetNotAfter()); err != nil {
		return pki.StatusChange{}, err
	}
	c.Status, err = parseStatus(sc)
	return c, err
}

func parseStatus(sc *brevetv1.StatusChange) (pki.Status, error) {
	s := pki.Status{Version: uint64(sc.GetVersion())} //nolint:gosec // checked below
	if sc.GetVersion() < 0 {
		return pki.Status{}, fmt.Errorf("a status change has the version %d", sc.GetVersion())
	}
	switch sc.GetState() {
	case brevetv1.CertificateState_CERTIFICATE_STATE_UNSPECIFIED:
		if len(sc.GetFingerprint()) == 0 || s.Version != 0 {
			return pki.Status{}, errors.New("a status change has no state")
		}
		return pki.Status{State: pki.Good, Version: 1}, nil
	case brevetv1.CertificateState_CERTIFICATE_STATE_GOOD:
		s.State = pki.Good
		return s, nil
	case brevetv1.CertificateState_CERTIFICATE_STATE_HOLD:
		s.State = pki.Hold
	case brevetv1.CertificateState_CERTIFICATE_STATE_REVOKED:
		s.State = pki.Revoked
	default:
		return pki.Status{}, fmt.Errorf("unknown state %d of a certificate", sc.GetState())
	}
	var err error
	if s.RevokedAt, err = parseTime(sc.GetRevokeTime()); err != nil {
		return pki.Status{}, err
	}
	s.Reason, err = pki.ReasonFromCode(int(sc.GetReason()))
	return s, err
}

// Hash is a SHA-256 chain value. The zero value precedes the first entry.
type Hash [sha256.Size]byte

// String formats the hash as hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Chain returns the chain value after an entry: SHA-256(0x01 ‖ before ‖ SHA-256(0x00 ‖ entry)). The two prefixes keep
// an entry from being mistaken for a chain value (RFC 6962 section 2.1).
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
