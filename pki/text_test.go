package pki_test

import (
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/pki"
)

func TestCheckText(t *testing.T) {
	for _, text := range []string{
		"", "lorry stolen, case 4711", `say "stop"`, "CN=pump,O=Werk 7", "Müller", "Київ", "東京工場", "שלום", "नमस्ते", "€ ½ ✓", strings.Repeat("é", 128),
	} {
		if err := pki.CheckText("the comment", text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	for name, text := range map[string]string{
		"NUL": "a\x00", "escape": "\x1b[2J", "line break": "a\nb", "delete": "a\x7f", "C1 control": "a\u0085", "no-break space": "a\u00a0b",
		"right-to-left override": "a\u202eb", "isolate": "\u2066a\u2069", "line separator": "\u2028", "zero-width space": "a\u200bb",
		"byte order mark": "\ufeffa", "tag": "a\U000e0041", "variation selector": "a\ufe0f", "Hangul filler": "a\u3164", "private use": "\ue000",
		"combining mark first": "\u0301a", "in parts": "Mu\u0308ller", "not UTF-8": "a\xff", "surrogate": "\xed\xa0\x80", "too long": strings.Repeat("é", 129),
	} {
		err := pki.CheckText("the comment", text)
		if refusal, refused := pki.AsRefusal(err); !refused || refusal.Rule != pki.RuleRequest || !strings.HasPrefix(refusal.Detail, "the comment ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPredicate(t *testing.T) {
	for state, want := range map[pki.State]string{pki.Good: "good", pki.Hold: "on hold", pki.Revoked: "revoked"} {
		if got := state.Predicate(); got != want {
			t.Errorf("a certificate in state %v is %q, want %q", state, got, want)
		}
	}
}
