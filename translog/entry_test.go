package translog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// sameValues lets cmp compare the opaque values of pki with ==.
var sameValues = cmp.Options{
	cmp.Comparer(func(a, b pki.Actor) bool { return a == b }),
	cmp.Comparer(func(a, b pki.SPIFFEID) bool { return a == b }),
	cmp.Comparer(func(a, b pki.IssuerID) bool { return a == b }),
	cmp.Comparer(func(a, b pki.Serial) bool { return a == b }),
	cmp.Comparer(func(a, b pki.KeyHash) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b pki.TokenID) bool { return a == b }),
	cmp.Comparer(func(a, b pki.RequestID) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b *big.Int) bool { return a == nil && b == nil || a != nil && b != nil && a.Cmp(b) == 0 }),
}

func genTime(t *rapid.T, label string) time.Time {
	return time.UnixMilli(rapid.Int64Range(time.Time{}.UnixMilli(), 250_000_000_000_000).Draw(t, label)).UTC()
}

func genChange(t *rapid.T) pki.StatusChange {
	random := rapid.SliceOfN(rapid.Byte(), 53, 53).Draw(t, "random")
	random[0], random[32] = 1, random[32]&0x7f|1
	issuer, err := pki.IssuerIDFromBytes(random[:32])
	if err != nil {
		t.Fatal(err)
	}
	serial, err := pki.SerialFromBytes(random[32:52])
	if err != nil {
		t.Fatal(err)
	}
	c := pki.StatusChange{
		Ref: pki.CertRef{Issuer: issuer, Serial: serial}, NotAfter: genTime(t, "not after"),
		Status: pki.Status{
			State:   rapid.SampledFrom([]pki.State{pki.Good, pki.Hold, pki.Revoked}).Draw(t, "state"),
			Version: rapid.OneOf(rapid.Uint64Range(0, 2), rapid.Uint64Range(0, math.MaxInt64)).Draw(t, "version"),
		},
	}
	if rapid.Bool().Draw(t, "issued") {
		c.Fingerprint = rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "fingerprint")
	}
	if c.Status.State == pki.Good {
		return c
	}
	c.Status.RevokedAt = genTime(t, "revoked at")
	name := rapid.SampledFrom(pki.ReasonNames()).Draw(t, "reason")
	if c.Status.Reason, err = pki.ParseReason(name); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEntryRoundTrips(t *testing.T) {
	var ids []pki.SPIFFEID
	for _, text := range []string{"spiffe://fleet.example/device/42", "spiffe://fleet.example/brevet/operator/ann"} {
		id, err := pki.ParseSPIFFEID(text)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	actors := []pki.Actor{{}, pki.ActorIdentity(ids[0]), pki.ActorIdentity(ids[1]), pki.ActorSystem("crl"), pki.ActorCommand("ceremony install")}
	rapid.Check(t, func(t *rapid.T) {
		e := Entry{
			Time:     genTime(t, "time"),
			Actor:    rapid.SampledFrom(actors).Draw(t, "actor"),
			Action:   rapid.SampledFrom(actions[1:]).Draw(t, "action"),
			Outcome:  rapid.SampledFrom([]Outcome{Done, Refused}).Draw(t, "outcome"),
			Identity: rapid.SampledFrom([]pki.SPIFFEID{{}, ids[0]}).Draw(t, "identity"),
			Changes:  rapid.SliceOfN(rapid.Custom(genChange), 0, 4).Draw(t, "changes"),
		}
		e.Event = rapid.SampledFrom(events).Draw(t, "event")(t, ids[0], len(e.Changes))
		e.RequestID = genOptional(t, "request ID", 16, pki.RequestIDFromBytes)
		b, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := e.Marshal(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("a second encoding differs: %v", err)
		}
		got, err := ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		if len(e.Changes) == 0 {
			e.Changes = nil
		}
		if d := cmp.Diff(e, got, sameValues); d != "" {
			t.Fatalf("the decoded entry differs (-want +got):\n%s", d)
		}
	})
}

// A more precise time is truncated to the millisecond, before and after 1970.
func TestTimesHaveMillisecondPrecision(t *testing.T) {
	for _, ns := range []int64{1_999_999, -1} {
		e := goldenEntry(t)
		e.Time = time.Unix(0, ns)
		b, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseEntry(b)
		if age := e.Time.Sub(got.Time); err != nil || age < 0 || age >= time.Millisecond || got.Time.Nanosecond()%1e6 != 0 {
			t.Errorf("%v is decoded as %v, %v", e.Time, got.Time, err)
		}
	}
}

func goldenEntry(t *testing.T) Entry {
	issuer, err := pki.IssuerIDFromBytes(bytes.Repeat([]byte{0xca}, 32))
	if err != nil {
		t.Fatal(err)
	}
	serial, err := pki.SerialFromBytes(bytes.Repeat([]byte{0x17}, 20))
	if err != nil {
		t.Fatal(err)
	}
	device, err := pki.ParseSPIFFEID("spiffe://fleet.example/device/42")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 22, 8, 0, 0, 500e6, time.UTC)
	return Entry{
		Time: at, Actor: pki.ActorSystem("test"), Action: CertificateRevoked, Outcome: Done, Identity: device,
		Changes: []pki.StatusChange{{
			Ref: pki.CertRef{Issuer: issuer, Serial: serial}, NotAfter: at.Add(time.Hour),
			Status: pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise, RevokedAt: at.Truncate(time.Second), Version: 2},
		}},
		Event: &RequestedChange{Reason: pki.KeyCompromise, Comment: "lost"},
	}
}

// renewal returns the most frequent kind of entry.
func renewal(t *testing.T) Entry {
	t.Helper()
	e := goldenEntry(t)
	e.Actor, e.Action = pki.ActorIdentity(e.Identity), CertificateIssued
	e.Changes[0].Status, e.Changes[0].Fingerprint = pki.Status{State: pki.Good, Version: 1}, bytes.Repeat([]byte{0xf1}, 32)
	request, err := pki.RequestIDFromBytes(bytes.Repeat([]byte{0x0a}, 16))
	if err != nil {
		t.Fatal(err)
	}
	before, err := pki.SerialFromBytes(bytes.Repeat([]byte{0x0e}, 20))
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.KeyHashFromBytes(bytes.Repeat([]byte{0x0b}, 32))
	if err != nil {
		t.Fatal(err)
	}
	e.RequestID = request
	e.Event = &IssuedCertificate{
		Profile: "device", Key: key, NotBefore: e.Time.Add(-5 * time.Minute), IssueTime: e.Time.Add(-5 * time.Millisecond), Partition: 3, Predecessor: before,
	}
	return e
}

// The bytes below are in archives. If this test fails, the format has changed, and that change is wrong.
func TestEntryGolden(t *testing.T) {
	const identity = "2a17" + "666c6565742e6578616d706c652f6465766963652f3432"
	const issuer = "0a20" + "cacacacacacacacacacacacacacacacacacacacacacacacacacacacacacacaca"
	const serial = "1214" + "1717171717171717171717171717171717171717"
	for name, c := range map[string]struct {
		entry Entry
		want  string
	}{
		"a revocation": {
			goldenEntry(t),
			"08f4d39392a034" + // time
				"120b73797374656d3a74657374" + // actor
				"180c" + // action
				identity +
				"324c" + issuer + serial + // change
				"18f4b0ef93a034" + "2803" + "3002" + "3801" + "4080d09392a034" + // not after, kind, version, reason, revoked at
				"7a08" + "0801" + "1a046c6f7374", // event: reason, comment
		},
		"a renewal": {
			renewal(t),
			"08f4d39392a034" + // time
				"180a" + // action
				identity +
				"3261" + issuer + serial + // change
				"18f4b0ef93a034" + // not after
				"2220" + "f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1f1" + // fingerprint
				"3a10" + "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a" + // request
				"4248" + "0a06" + "646576696365" + // event: profile
				"1220" + "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b" + // key
				"18c0cf24" + "200a" + "2803" + // since notBefore, since issue, partition
				"3214" + "0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e", // predecessor
		},
	} {
		b, err := c.entry.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(b); got != c.want {
			t.Errorf("%s is encoded as\n%s, want\n%s", name, got, c.want)
		}
	}
}

// The numbers of the actions are in archives, too. They match brevet.v1.
func TestActionNumbersMatchProto(t *testing.T) {
	names := brevetv1.Action_name
	if len(names) != len(actions) {
		t.Fatalf("%d actions, %d in brevet.v1", len(actions), len(names))
	}
	for n, name := range names {
		if n == 0 {
			continue
		}
		want := strings.ToLower(strings.TrimPrefix(name, "ACTION_"))
		verb := strings.LastIndex(want, "_")
		if want = want[:verb] + "." + want[verb+1:]; string(actions[n]) != want {
			t.Errorf("action %d is %s, and %s in brevet.v1", n, actions[n], want)
		}
	}
}

// The expected values were computed with openssl: printf '\000one' | openssl dgst -sha256, and so on.
func TestChainGolden(t *testing.T) {
	first := Chain(Hash{}, []byte("one"))
	second := Chain(first, []byte("two"))
	for _, c := range []struct{ got, want string }{
		{first.String(), "db3ddcc0dd7763d3f7f5ba2c30fded2135a9a137841e37731bc118a9c690fc3c"},
		{second.String(), "c00591f8f1d135542cab371cbf0a2e7797bdbcd118ae32eb39f49da99dd8c4f6"},
	} {
		if c.got != c.want {
			t.Errorf("chain value %s, want %s", c.got, c.want)
		}
	}
	if Chain(Hash{}, nil) == Hash(sha256.Sum256(nil)) {
		t.Error("the chain value of an empty entry is its plain hash")
	}
}

func TestMarshalRefusesUnreadableEntries(t *testing.T) {
	for name, spoil := range map[string]func(*Entry){
		"no action":              func(e *Entry) { e.Action = "" },
		"other action":           func(e *Entry) { e.Action = "certificate.lost" },
		"no outcome":             func(e *Entry) { e.Outcome = "" },
		"other outcome":          func(e *Entry) { e.Outcome = "maybe" },
		"no issuer":              func(e *Entry) { e.Changes[0].Ref.Issuer = pki.IssuerID{} },
		"no serial":              func(e *Entry) { e.Changes[0].Ref.Serial = pki.Serial{} },
		"no state":               func(e *Entry) { e.Changes[0].Status.State = 0 },
		"version too large":      func(e *Entry) { e.Changes[0].Status.Version = math.MaxInt64 + 1 },
		"unknown state":          func(e *Entry) { e.Changes[0].Status.State = 4 },
		"no reason":              func(e *Entry) { e.Changes[0].Status.Reason = 7 },
		"a time before 1":        func(e *Entry) { e.Time = time.Time{}.Add(-time.Millisecond) },
		"an end after 9999":      func(e *Entry) { e.Changes[0].NotAfter = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"no text":                func(e *Entry) { e.Event = &Refusal{Detail: "\xff"} },
		"too long a text":        func(e *Entry) { e.Event = &Refusal{Detail: strings.Repeat("x", MaxEntrySize)} },
		"an event without a key": func(e *Entry) { e.Event = &IssuedCertificate{NotBefore: e.Time, IssueTime: e.Time} },
		"a negative count":       func(e *Entry) { e.Event = &BulkStep{Applied: -1} },
		"an abandoned certificate without a change": func(e *Entry) {
			e.Event = &AbandonedCertificates{Certificates: make([]AbandonedCertificate, 2)}
		},
		"invalidity times of other changes": func(e *Entry) { e.Event = &RequestedChange{InvalidTimes: make([]time.Time, 2)} },
	} {
		e := goldenEntry(t)
		spoil(&e)
		if b, err := e.Marshal(); err == nil {
			t.Errorf("%s: encoded as %d bytes, want an error", name, len(b))
		}
	}
}

func TestParseEntryRefuses(t *testing.T) {
	good, err := goldenEntry(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	field := func(n protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), content)
	}
	number := func(n protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v)
	}
	certificate := append(field(1, bytes.Repeat([]byte{0xca}, 32)), field(2, bytes.Repeat([]byte{0x17}, 20))...)
	issued := append(bytes.Clone(certificate), field(4, bytes.Repeat([]byte{0xf1}, 32))...)
	with := func(more ...byte) []byte { return append(bytes.Clone(good), more...) }
	if _, err := ParseEntry(with(field(6, issued)...)); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"no action":           field(5, []byte("fleet.example/device/42")),
		"another action":      with(number(3, uint64(len(actions)))...),
		"an early time":       with(number(1, 1<<63)...),
		"a late time":         with(number(1, 1<<60)...),
		"a whole SPIFFE ID":   with(field(5, []byte("spiffe://fleet.example/device/42"))...),
		"half a request":      with(field(7, []byte{1})...),
		"half a predecessor":  with(field(8, append(field(2, make([]byte, 32)), field(6, []byte{1})...))...),
		"half a digest":       with(field(8, append(field(2, make([]byte, 32)), field(9, field(1, append(field(1, []byte("token")), field(2, []byte{1})...)))...))...),
		"no token to digest":  with(field(8, append(field(2, make([]byte, 32)), field(9, field(1, field(1, []byte("token"))))...))...),
		"unknown evidence":    with(field(8, append(field(2, make([]byte, 32)), field(9, field(1, append(field(1, []byte("word")), field(2, make([]byte, 32))...)))...))...),
		"half a subject":      with(field(8, append(field(2, make([]byte, 32)), field(9, field(4, field(1, []byte("token"))))...))...),
		"no policy revision":  with(field(23, field(2, make([]byte, 32)))...),
		"no key":              with(field(8, field(1, []byte("device")))...),
		"no period":           with(field(30, number(1, 1))...),
		"a long period":       with(field(30, number(3, uint64(MaxRotation/time.Millisecond)+1))...),
		"no kind":             with(field(6, certificate)...),
		"no kind, a version":  with(field(6, append(bytes.Clone(issued), number(6, 2)...))...),
		"another kind":        with(field(6, append(bytes.Clone(issued), number(5, 4)...))...),
		"another reason":      with(field(6, append(bytes.Clone(certificate), append(number(5, 3), number(7, 7)...)...))...),
		"a late revocation":   with(field(6, append(bytes.Clone(certificate), append(number(5, 3), number(8, 1<<60)...)...))...),
		"a late end":          with(field(6, append(bytes.Clone(issued), number(3, 1<<60)...))...),
		"a cut entry":         good[:len(good)-1],
		"another identity":    append(bytes.Clone(good), field(5, []byte("fleet.example/a b"))...),
		"a change of nothing": append(bytes.Clone(good), field(6, nil)...),
		"an issuer too short": append(bytes.Clone(good), field(6, field(1, []byte{1}))...),
	} {
		if e, err := ParseEntry(b); err == nil {
			t.Errorf("%s: %+v, want an error", name, e)
		}
	}
}
