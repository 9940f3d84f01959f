package storetest

import (
	"context"
	"encoding/hex"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// textUse is a method that stores a text from outside, or searches for one.
type textUse struct {
	use func(ctx context.Context, t *testing.T, w *world, text string) error
	// limit is the maximum length of the text in bytes; zero for none.
	limit int
}

var textUses = map[string]textUse{
	"name of a label":      {register(func(n *ra.Registration, text string) { n.Labels = map[string]string{text: "a"} }), pki.MaxText},
	"value of a label":     {register(func(n *ra.Registration, text string) { n.Labels = map[string]string{"a": text} }), pki.MaxText},
	"rule of an identity":  {register(func(n *ra.Registration, text string) { n.Rule = text }), pki.MaxText},
	"name of a new label":  {update(func(id *ra.Identity, text string) { id.Labels = map[string]string{text: "a"} }), pki.MaxText},
	"value of a new label": {update(func(id *ra.Identity, text string) { id.Labels = map[string]string{"a": text} }), pki.MaxText},
	"profile of a token": {func(ctx context.Context, t *testing.T, w *world, text string) error {
		token := w.newToken(t, w.register(t).ID, operator)
		token.Profile = text
		_, err := w.RA.CreateToken(ctx, token)
		return err
	}, 0},
	"label of a token's pattern": {func(ctx context.Context, t *testing.T, w *world, text string) error {
		token := w.newPattern(t, operator)
		token.ID, token.Labels = w.newToken(t, w.register(t).ID, operator).ID, map[string]string{"a": text}
		_, err := w.RA.CreateToken(ctx, token)
		return err
	}, pki.MaxText},
	"comment of a policy": {func(ctx context.Context, _ *testing.T, w *world, text string) error {
		newest, err := w.Policies.Policy(ctx, 0)
		if refusal, is := pki.AsRefusal(err); err != nil && (!is || refusal.Rule != pki.RuleNotFound) {
			return err
		}
		b := w.unique()
		change := w.policy(string(b[:]), newest.Revision)
		change.Comment = text
		_, err = w.Policies.ApplyPolicy(ctx, change)
		return err
	}, pki.MaxText},
	"label of a bulk revocation": {func(ctx context.Context, _ *testing.T, w *world, text string) error {
		_, _, err := w.Revocation.CreateBulk(ctx, w.bulkByLabel(text, pki.Superseded))
		return err
	}, 0},
	"comment of a bulk revocation": {func(ctx context.Context, t *testing.T, w *world, text string) error {
		req := w.bulkByLabel("a", pki.Superseded)
		req.Comment = text
		_, _, err := w.Revocation.CreateBulk(ctx, req)
		return err
	}, 0},
	"search by a label": {func(ctx context.Context, _ *testing.T, w *world, text string) error {
		_, _, err := w.RA.Identities(ctx, ra.IdentityFilter{Label: pki.Label{Name: text, Value: text}}, w.now, pki.SPIFFEID{}, 1)
		return err
	}, 0},
	"search by a profile": {func(ctx context.Context, _ *testing.T, w *world, text string) error {
		_, _, err := w.RA.Identities(ctx, ra.IdentityFilter{Profile: text}, w.now, pki.SPIFFEID{}, 1)
		return err
	}, 0},
}

// testTexts uses odd texts. Each is stored, or refused as such, alike by every engine.
func testTexts(t *testing.T, open func(t *testing.T) Store) {
	for name, u := range textUses {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, open(t))
			for _, text := range []string{
				"plain", "\U0001F511 clé", `'"; -- \ %_$1 ?1`, "\x00", "a\x00b", "\xff", "\xed\xa0\x80", strings.Repeat("é", pki.MaxText/2),
				strings.Repeat("x", pki.MaxText+1), w.random(3000), w.random(1 << 16), w.random(3000) + "\x00",
			} {
				err := u.use(context.Background(), t, w, text)
				_, refused := pki.AsRefusal(err)
				isStored := utf8.ValidString(text) && !strings.Contains(text, "\x00") && (u.limit == 0 || len(text) <= u.limit)
				if refused == isStored || err != nil && !refused {
					t.Errorf("%.32q of %d bytes: %v", text, len(text), err)
				}
			}
			w.mustReplay(t)
		})
	}
}

// random returns a text that no compression makes shorter than half of it.
func (w *world) random(n int) string {
	var b strings.Builder
	for b.Len() < n {
		u := w.unique()
		b.WriteString(hex.EncodeToString(u[:]))
	}
	return b.String()[:n]
}

func register(set func(n *ra.Registration, text string)) func(context.Context, *testing.T, *world, string) error {
	return func(ctx context.Context, t *testing.T, w *world, text string) error {
		t.Helper()
		n := ra.Registration{Identity: w.newIdentity(t)}
		set(&n, text)
		_, err := w.RA.CreateIdentity(ctx, n, operator)
		return err
	}
}

func update(set func(id *ra.Identity, text string)) func(context.Context, *testing.T, *world, string) error {
	return func(ctx context.Context, t *testing.T, w *world, text string) error {
		t.Helper()
		id := w.register(t)
		set(&id, text)
		_, err := w.RA.UpdateIdentity(ctx, id, operator, w.now)
		return err
	}
}
