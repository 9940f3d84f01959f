package translog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
)

// sameValues compares the opaque values of pki, which are comparable.
var sameValues = cmp.Options{
	cmp.Comparer(func(a, b pki.Actor) bool { return a == b }),
	cmp.Comparer(func(a, b pki.SPIFFEID) bool { return a == b }),
	cmp.Comparer(func(a, b pki.IssuerID) bool { return a == b }),
	cmp.Comparer(func(a, b pki.Serial) bool { return a == b }),
}

func drawTime(t *rapid.T, label string) time.Time {
	return time.Unix(rapid.Int64Range(0, 250_000_000_000).Draw(t, label), rapid.Int64Range(0, 999_999_999).Draw(t, label+" ns")).UTC()
}

func drawChange(t *rapid.T) pki.StatusChange {
	octets := rapid.SliceOfN(rapid.Byte(), 53, 53).Draw(t, "octets")
	octets[0], octets[32] = 1, octets[32]&0x7f|1
	issuer, err := pki.IssuerIDFromBytes(octets[:32])
	if err != nil {
		t.Fatal(err)
	}
	serial, err := pki.SerialFromBytes(octets[32:52])
	if err != nil {
		t.Fatal(err)
	}
	c := pki.StatusChange{
		Ref: pki.CertRef{Issuer: issuer, Serial: serial}, NotAfter: drawTime(t, "not after"),
		Status: pki.Status{
			State:   rapid.SampledFrom([]pki.State{pki.Good, pki.Hold, pki.Revoked}).Draw(t, "state"),
			Version: rapid.Uint64().Draw(t, "version"),
		},
	}
	if c.Status.State == pki.Good {
		c.Fingerprint = rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "fingerprint")
		return c
	}
	c.Status.RevokedAt = drawTime(t, "revoked at")
	name := rapid.SampledFrom(pki.ReasonNames()).Draw(t, "reason")
	if c.Status.Reason, err = pki.ParseReason(name); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEntryRoundTrips(t *testing.T) {
	device, err := pki.ParseSPIFFEID("spiffe://fleet.example/device/42")
	if err != nil {
		t.Fatal(err)
	}
	actors := []pki.Actor{{}, pki.ActorIdentity(device), pki.ActorSystem("crl"), pki.ActorCommand("ceremony install")}
	rapid.Check(t, func(t *rapid.T) {
		e := Entry{
			Time:     drawTime(t, "time"),
			Actor:    rapid.SampledFrom(actors).Draw(t, "actor"),
			Action:   rapid.SampledFrom([]Action{CertificateIssued, CertificateRevoked, RequestRefused}).Draw(t, "action"),
			Outcome:  rapid.SampledFrom([]Outcome{Done, Refused}).Draw(t, "outcome"),
			Identity: rapid.SampledFrom([]pki.SPIFFEID{{}, device}).Draw(t, "identity"),
			Changes:  rapid.SliceOfN(rapid.Custom(drawChange), 0, 4).Draw(t, "changes"),
			Facts:    rapid.MapOfN(rapid.String(), rapid.String(), 0, 8).Draw(t, "facts"),
		}
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
		e.Actor = pki.ActorFromText(e.Actor.String()) // nobody known reads back by that name
		if len(e.Changes) == 0 {
			e.Changes = nil
		}
		if len(e.Facts) == 0 {
			e.Facts = nil
		}
		if d := cmp.Diff(e, got, sameValues); d != "" {
			t.Fatalf("the entry reads back differently (-want +got):\n%s", d)
		}
	})
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
	at := time.Date(2026, 11, 22, 8, 0, 0, 500, time.UTC)
	return Entry{
		Time: at, Actor: pki.ActorSystem("test"), Action: CertificateRevoked, Outcome: Done, Identity: device,
		Changes: []pki.StatusChange{{
			Ref: pki.CertRef{Issuer: issuer, Serial: serial}, NotAfter: at.Add(time.Hour),
			Status: pki.Status{State: pki.Revoked, Reason: pki.KeyCompromise, RevokedAt: at.Truncate(time.Second), Version: 2},
		}},
		Facts: map[string]string{"b": "2", "a": "1"},
	}
}

// The bytes below are in archives. If this test fails the format has changed, and the change is wrong.
func TestEntryGolden(t *testing.T) {
	const want = "" +
		"0a090880c28ad80610f403" + // time
		"120b73797374656d3a74657374" + // actor
		"1a1363657274696669636174652e7265766f6b6564" + // action
		"2204646f6e65" + // outcome
		"2a20" + "7370696666653a2f2f666c6565742e6578616d706c652f6465766963652f3432" + // identity
		"3251" + // change
		"0a20" + "cacacacacacacacacacacacacacacacacacacacacacacacacacacacacacacaca" +
		"1214" + "1717171717171717171717171717171717171717" +
		"1a0908" + "90de8ad80610f403" + "2002" + "2803" + "3001" + "3a0608" + "80c28ad806" +
		"3a060a01611201" + "31" + "3a060a01621201" + "32" // facts, in the order of their names
	b, err := goldenEntry(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("encoding\n%s, want\n%s", got, want)
	}
}

// The values come from openssl: printf '\000one' | openssl dgst -sha256, and so on.
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
		t.Error("an empty entry's chain value is its plain hash")
	}
}

func TestMarshalRefusesWhatCouldNotBeReadBack(t *testing.T) {
	for name, spoil := range map[string]func(*Entry){
		"no action":       func(e *Entry) { e.Action = "" },
		"no outcome":      func(e *Entry) { e.Outcome = "" },
		"other outcome":   func(e *Entry) { e.Outcome = "maybe" },
		"no issuer":       func(e *Entry) { e.Changes[0].Ref.Issuer = pki.IssuerID{} },
		"no serial":       func(e *Entry) { e.Changes[0].Ref.Serial = pki.Serial{} },
		"no state":        func(e *Entry) { e.Changes[0].Status.State = 0 },
		"unknown state":   func(e *Entry) { e.Changes[0].Status.State = 4 },
		"no text":         func(e *Entry) { e.Facts["name"] = "\xff" },
		"too long a fact": func(e *Entry) { e.Facts["name"] = strings.Repeat("x", MaxEntrySize) },
	} {
		e := goldenEntry(t)
		spoil(&e)
		if b, err := e.Marshal(); err == nil {
			t.Errorf("%s: %d octets, want a refusal", name, len(b))
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
	for name, b := range map[string][]byte{
		"a cut entry":         good[:len(good)-1],
		"another identity":    append(bytes.Clone(good), field(5, []byte("https://fleet.example/device/42"))...),
		"a change of nothing": append(bytes.Clone(good), field(6, nil)...),
		"an issuer too short": append(bytes.Clone(good), field(6, field(1, []byte{1}))...),
	} {
		if e, err := ParseEntry(b); err == nil {
			t.Errorf("%s: %+v, want an error", name, e)
		}
	}
}
