package rules_test

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/store/rules"
)

func TestLineage(t *testing.T) {
	none := rules.Link[string]{}
	for name, c := range map[string]struct {
		links []rules.Link[string]
		want  []int64
	}{
		"none":                 {nil, nil},
		"never renewed":        {[]rules.Link[string]{{ID: 1, Key: "a"}, {ID: 2, Key: "b"}}, []int64{1}},
		"renewed twice":        {[]rules.Link[string]{{1, "a", "b", true}, {2, "b", "c", true}, {ID: 3, Key: "c"}}, []int64{1, 2, 3}},
		"with its own key":     {[]rules.Link[string]{{1, "a", "a", true}, {ID: 2, Key: "a"}, {ID: 3, Key: "a"}}, []int64{1, 2, 3}},
		"another enrollment":   {[]rules.Link[string]{{1, "a", "b", true}, {2, "x", "y", true}, {ID: 3, Key: "y"}, {ID: 4, Key: "b"}}, []int64{1, 4}},
		"recorded before":      {[]rules.Link[string]{{2, "b", "c", true}, {ID: 3, Key: "a"}, {ID: 4, Key: "c"}}, []int64{2, 4}},
		"a successor to come":  {[]rules.Link[string]{{1, "a", "b", true}}, []int64{1}},
		"the empty key counts": {[]rules.Link[string]{none, none}, []int64{0}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := slices.Sorted(maps.Keys(rules.Lineage(c.links))); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// TestBulkMembers checks that a bulk revocation for keyCompromise has all certificates of the selected keys as members.
// For other reasons, only selected certificates are members.
func TestBulkMembers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOf(rapid.Custom(func(t *rapid.T) rules.Candidate[int] {
			return rules.Candidate[int]{Key: rapid.IntRange(1, 4).Draw(t, "key"), Selected: rapid.Bool().Draw(t, "selected")}
		})).Draw(t, "certificates")
		o := revocation.BulkRequest{Reason: rapid.SampledFrom([]pki.Reason{pki.KeyCompromise, pki.Superseded}).Draw(t, "reason")}
		for i, is := range rules.BulkMembers(o, all) {
			leaked := slices.ContainsFunc(all, func(c rules.Candidate[int]) bool { return c.Selected && c.Key == all[i].Key })
			if want := all[i].Selected || leaked && o.Reason == pki.KeyCompromise; is != want {
				t.Fatalf("certificate %d of %v: member = %v, want the opposite", i, all, is)
			}
		}
	})
}

func TestOpenBulkRevocationsAreBounded(t *testing.T) {
	several := revocation.BulkRequest{Selection: pki.Selection{Profile: "device"}}
	one := revocation.BulkRequest{Selection: pki.Selection{Identity: identity(t)}}
	for _, c := range []struct {
		o      revocation.BulkRequest
		open   int
		passes bool
	}{{several, 15, true}, {several, 16, false}, {one, 16, true}, {one, 47, true}, {one, 48, false}} {
		err := rules.CheckOpenBulk(c.o, c.open)
		if refusal, _ := pki.AsRefusal(err); (refusal == nil) != c.passes || refusal != nil && refusal.Rule != pki.RuleOverloaded {
			t.Errorf("with %d open bulk revocations: %v", c.open, err)
		}
	}
}

func TestBulkSteps(t *testing.T) {
	s := revocation.BulkRevocation{Total: 5, Counted: true}
	if s = rules.BulkStep(s, 3, false); s.Applied != 3 || s.Total != 5 || s.Done {
		t.Errorf("after a step: %+v", s)
	}
	if s = rules.BulkStep(s, 1, true); s.Applied != 4 || s.Total != 4 || !s.Done {
		t.Errorf("after the last step: %+v", s)
	}
	changes := []pki.StatusChange{{NotAfter: now}, {NotAfter: now.Add(-1)}}
	if s = rules.BulkTotal(revocation.BulkRevocation{BulkRequest: revocation.BulkRequest{At: now}}, changes); s.Total != 2 || s.Expired != 1 || s.Applied != 2 || !s.Counted {
		t.Errorf("applied in the creating transaction: %+v", s)
	}
}

func TestSpreads(t *testing.T) {
	for _, c := range []struct {
		s    pki.Selection
		want bool
	}{
		{pki.Selection{Identity: identity(t)}, false}, {pki.Selection{Profile: "device"}, true},
		{pki.Selection{Label: pki.Label{Name: "site"}}, false}, {pki.Selection{IssuedFrom: now}, true},
	} {
		for _, reason := range []pki.Reason{pki.KeyCompromise, pki.Superseded} {
			got := rules.Spreads(revocation.BulkRequest{Selection: c.s, Reason: reason})
			if got != (c.want && reason == pki.KeyCompromise) {
				t.Errorf("Spreads of %+v for %v = %v, want the opposite", c.s, reason, got)
			}
		}
	}
}
