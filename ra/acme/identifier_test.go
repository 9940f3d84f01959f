package acme_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/idna"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
)

func TestParseIdentifiers(t *testing.T) {
	for text, want := range map[string]string{
		"dns:pump.example": "dns:pump.example", "dns:PUMP.Example": "dns:pump.example", "dns:*.Pump.example": "dns:*.pump.example",
		"dns:xn--bcher-kva.example": "dns:xn--bcher-kva.example", "dns:nas": "dns:nas", "dns:a-1.b.example": "dns:a-1.b.example",
		"ip:192.0.2.1": "ip:192.0.2.1", "ip:2001:DB8:0::1": "ip:2001:db8::1", "ip:::ffff:192.0.2.1": "ip:192.0.2.1",
	} {
		kind, value, _ := strings.Cut(text, ":")
		got, err := acme.ParseIdentifiers([]acme.Identifier{{Type: acme.IdentifierType(kind), Value: value}})
		if err != nil || len(got) != 1 || got[0].String() != want {
			t.Errorf("%s: %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{
		"dns:", "dns:.", "dns:pump.example.", "dns:.pump.example", "dns:a..example", "dns:192.0.2.1", "dns:2001:db8::1", "dns:[::1]",
		"dns:b\u00fccher.example", "dns:\u212aelvin.example", "dns:xn--a.example", "dns:xn--BCHER-kva..example", "dns:a_b.example", "dns:-a.example",
		"dns:*", "dns:*.", "dns:*.com", "dns:a.*.example", "dns:*.*.example", "dns:*a.example", "dns:a b.example", "dns:a.example\x00",
		"dns:" + strings.Repeat("a", 64) + ".example", "dns:" + strings.Repeat("a.", 130) + "example", "dns:0x7f.1", "dns:1.2.3", "dns:http://a.example",
		"ip:", "ip:a.example", "ip:192.0.2.1/24", "ip:192.0.2.01", "ip:fe80::1%eth0", "ip:0.0.0.0", "ip:::", "ip:224.0.0.1", "ip:192.0.2.1.",
	} {
		kind, value, _ := strings.Cut(text, ":")
		got, err := acme.ParseIdentifiers([]acme.Identifier{{Type: acme.IdentifierType(kind), Value: value}})
		if err == nil {
			t.Errorf("%q is accepted as %v", text, got)
			continue
		}
		refused(t, text, err, pki.RuleACMEIdentifier)
	}
	_, err := acme.ParseIdentifiers([]acme.Identifier{{Type: "email", Value: "a@b.example"}})
	refused(t, "an email address", err, pki.RuleACMEIdentifierType)

	got, err := acme.ParseIdentifiers(named("b.example", "192.0.2.1", "A.example", "B.example", "*.a.example"))
	want := named("*.a.example", "a.example", "b.example", "192.0.2.1")
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	var many []acme.Identifier
	for i := range 10_000 {
		many = append(many, named(fmt.Sprintf("%d.a.example", i))...)
	}
	if _, err := acme.ParseIdentifiers(many[:acme.MaxIdentifiers]); err != nil {
		t.Error(err)
	}
	for _, n := range []int{0, acme.MaxIdentifiers + 1, len(many)} {
		_, err := acme.ParseIdentifiers(many[:n])
		refused(t, fmt.Sprintf("%d names", n), err, pki.RuleACMEIdentifier)
	}
}

func TestParseID(t *testing.T) {
	id := acme.NewID()
	if got, ok := acme.ParseID(id.String()); !ok || got != id {
		t.Errorf("%s is parsed as %s", id, got)
	}
	for _, text := range []string{"", "a", id.String() + "A", id.String()[:21], acme.ID{}.String(), strings.Repeat("+", 22), "AAAAAAAAAAAAAAAAAAAAAB"} {
		if got, ok := acme.ParseID(text); ok {
			t.Errorf("%q is parsed as %s", text, got)
		}
	}
}

// FuzzParseIdentifiers checks that every accepted identifier is in the one form that certificates have.
func FuzzParseIdentifiers(f *testing.F) {
	for _, s := range []string{"pump.example", "*.PUMP.example", "xn--bcher-kva.example", "192.0.2.1", "::ffff:192.0.2.1", "a.example.", "\u212a.example"} {
		f.Add("dns", s)
		f.Add("ip", s)
	}
	f.Fuzz(func(t *testing.T, kind, value string) {
		got, err := acme.ParseIdentifiers([]acme.Identifier{{Type: acme.IdentifierType(kind), Value: value}, {Type: acme.IdentifierType(kind), Value: value}})
		if err != nil {
			if _, ok := pki.AsRefusal(err); !ok {
				t.Errorf("the error %v is not a refusal", err)
			}
			return
		}
		if len(got) != 1 {
			t.Fatalf("one name twice becomes %v", got)
		}
		again, err := acme.ParseIdentifiers(got)
		if err != nil || !slices.Equal(again, got) {
			t.Errorf("%v becomes %v, %v", got, again, err)
		}
		names := acme.NamesOf(got)
		switch got[0].Type {
		case acme.IP:
			if addr, err := netip.ParseAddr(got[0].Value); err != nil || addr.String() != got[0].Value || addr.Is4In6() || len(names.IPs) != 1 {
				t.Errorf("%q is not the canonical form of an address", got[0].Value)
			}
		case acme.DNS:
			base := strings.TrimPrefix(got[0].Value, "*.")
			if ascii, err := idna.Registration.ToASCII(base); err != nil || ascii != base || base != strings.ToLower(base) || strings.HasSuffix(base, ".") {
				t.Errorf("%q is not a name in lower case and ASCII", got[0].Value)
			}
			if _, err := netip.ParseAddr(base); err == nil || len(names.DNS) != 1 {
				t.Errorf("%q is an address, and has the type dns", got[0].Value)
			}
		}
	})
}
