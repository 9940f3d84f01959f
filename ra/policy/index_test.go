package policy_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"cel.dev/cel-go/cel"
	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/policy"
)

// plain evaluates conditions with the whole standard library of CEL, one rule after the other. It is the judge of the
// index, and of the evaluation of parts of conditions. A part that depends on a fact that is not there is false.
type plain struct{ rules []plainRule }

type plainRule struct {
	name string
	when []cel.Program // the parts of the condition
}

func newPlain(t *rapid.T, conditions [][]string) *plain {
	e, err := cel.NewEnv(cel.Variable("jwt.source", cel.StringType), cel.Variable("jwt.issuer", cel.StringType),
		cel.Variable("jwt.subject", cel.StringType), cel.Variable("jwt.uses", cel.IntType), cel.Variable("jwt.audience",
			cel.ListType(cel.StringType)))
	if err != nil {
		t.Fatal(err)
	}
	p := new(plain)
	for i, parts := range conditions {
		r := plainRule{name: fmt.Sprintf("r%d", i)}
		for _, text := range parts {
			compiled, issues := e.Compile(text)
			if issues.Err() != nil {
				t.Fatal(issues.Err())
			}
			program, err := e.Program(compiled)
			if err != nil {
				t.Fatal(err)
			}
			r.when = append(r.when, program)
		}
		p.rules = append(p.rules, r)
	}
	return p
}

// decide returns the first rule that matches, "" if none does, or "error" if a condition fails before that.
func (p *plain) decide(facts map[string]any) string {
	present := maps.Clone(facts)
	maps.DeleteFunc(present, func(_ string, value any) bool { return value == "" })
	for _, r := range p.rules {
		untrue, failed := false, false
		for _, part := range r.when {
			result, _, err := part.Eval(present)
			switch {
			case err == nil:
				untrue = untrue || result.Value() != true
			case strings.Contains(err.Error(), "no such attribute"):
				untrue = true
			default:
				failed = true
			}
		}
		switch {
		case untrue:
		case failed:
			return "error"
		default:
			return r.name
		}
	}
	return ""
}

func TestIndexMatchesPlainEvaluation(t *testing.T) {
	word := rapid.SampledFrom([]string{"", "a", "b", "12", "7"})
	comparison := rapid.Custom(func(t *rapid.T) string {
		fact := rapid.SampledFrom([]string{"jwt.source", "jwt.issuer", "jwt.subject"}).Draw(t, "fact")
		text := word.Draw(t, "text")
		return fmt.Sprintf(rapid.SampledFrom([]string{
			"%s == %q", "%s == %q", "%s == %q", "%s != %q", "%s.startsWith(%q)", "%s.endsWith(%q)", "%s.contains(%q)",
			"%s in [%q, 'b']", "%s in ['a', %q]", "!(%s == %q)", "(%s == %q || jwt.uses > 3)",
		}).Draw(t, "form"), fact, text)
	})
	conjunct := rapid.OneOf(comparison, comparison, rapid.SampledFrom([]string{
		"jwt.uses > 1", "int(jwt.subject) > 7", "'a' == jwt.source", "'b' in jwt.audience", "size(jwt.subject) == 2", "jwt.subject.matches('^[ab1]?2?$')",
		"(jwt.source == 'a' ? jwt.uses > 1 : int(jwt.subject) > 8)",
	}))
	condition := rapid.SliceOfN(conjunct, 0, 4)
	e := environment(t)
	rapid.Check(t, func(t *rapid.T) {
		conditions := rapid.SliceOfN(condition, 1, 12).Draw(t, "conditions")
		var kept [][]string
		p := compileReachable(t, e, conditions, &kept)
		if p == nil {
			t.Skip("no rule is left")
		}
		judge := newPlain(t, kept)
		for range 20 {
			facts := map[string]any{
				"jwt.source": word.Draw(t, "source"), "jwt.issuer": word.Draw(t, "issuer"), "jwt.subject": word.Draw(t, "subject"),
				"jwt.uses": rapid.Int64Range(0, 5).Draw(t, "uses"), "jwt.audience": rapid.SliceOfN(word, 0, 2).Draw(t, "audience"),
			}
			claims := ra.Claims{{Kind: kindJWT, Claim: ra.Claim{Facts: facts, Subject: pki.EvidenceSubject{Kind: kindJWT,
				Hash: [32]byte{1}}}}}
			want := judge.decide(facts)
			g, err := p.Grant(claims, "", now)
			got := g.Rule
			if err != nil && strings.Contains(err.Error(), "cannot be evaluated") {
				got = "error"
			}
			if got != want {
				t.Fatalf("%v decides by %q (%v), plain evaluation by %q, in\n%q", facts, got, err, want, kept)
			}
			explained := ""
			for _, trial := range p.Explain(claims, "") {
				switch trial.Outcome {
				case policy.Matched:
					explained = trial.Rule
				case policy.Failed:
					explained = "error"
				}
			}
			if explained != want {
				t.Fatalf("%v is explained by %q, want %q, in\n%q", facts, explained, want, kept)
			}
		}
	})
}

// compileReachable returns a policy with a rule for each condition. It leaves out rules that no request can match, which
// would be faults, and appends the conditions of the others to kept.
func compileReachable(t *rapid.T, e policy.Environment, conditions [][]string, kept *[][]string) *policy.Policy {
	var p *policy.Policy
	for _, c := range conditions {
		var document strings.Builder
		document.WriteString("rules:\n")
		for i, parts := range append(*kept, c) {
			when := strings.Join(parts, " && ")
			fmt.Fprintf(&document, "  - {name: r%d, evidence: [jwt], identity: a/b", i)
			if when != "" {
				fmt.Fprintf(&document, ", when: %q", when)
			}
			document.WriteString("}\n")
		}
		next, err := policy.Compile([]byte(document.String()), 1, e)
		if err != nil && (strings.Contains(err.Error(), "no request can reach") || strings.Contains(err.Error(), "no fact is the empty")) {
			continue
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, document.String())
		}
		p = next
		*kept = append(*kept, c)
	}
	return p
}

// thousandRules returns a policy with 1,000 rules for product lines of factories, of which each needs three comparisons.
func thousandRules(b *testing.B, when string) *policy.Policy {
	var document strings.Builder
	document.WriteString("rules:\n")
	for i := range 1000 {
		fmt.Fprintf(&document, `  - name: line-%d
    evidence: [x5c]
    when: `+when+`
    identity: device/line-%d/{x5c.source}/{x5c.serial}
    register: true
    labels: {line: "%d", maker: "{x5c.source}"}
`, i, i, i, i)
	}
	return compile(b, document.String())
}

func BenchmarkGrant(b *testing.B) {
	claims := func(i int) ra.Claims {
		return ra.Claims{claim(kindX5C, "x5c.source", "acme", "x5c.hardware_type", fmt.Sprintf("1.3.6.1.4.1.%d", i),
			"x5c.serial", fmt.Sprintf("L%d-0004711", i), "x5c.organization", "ACME Ltd", "x5c.not_after", now)}
	}
	for name, when := range map[string]string{
		"compared":   `x5c.source == "acme" && x5c.hardware_type == "1.3.6.1.4.1.%d" && x5c.serial.matches("^L[0-9]+-[0-9]{7}$")`,
		"beginnings": `x5c.serial.startsWith("L%d-")`,
		"patterns":   `x5c.serial.matches("^L%d-[0-9]{7}$")`,
	} {
		p := thousandRules(b, when)
		for which, i := range map[string]int{"first": 0, "last": 999} {
			b.Run(name+"/"+which, func(b *testing.B) {
				c := claims(i)
				b.ReportAllocs()
				for b.Loop() {
					if g, err := p.Grant(c, "", now); err != nil || g.Rule != fmt.Sprintf("line-%d", i) {
						b.Fatal(g.Rule, err)
					}
				}
			})
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		thousandRules(b,
			`x5c.source == "acme" && x5c.hardware_type == "1.3.6.1.4.1.%d" && x5c.serial.matches("^L[0-9]+-[0-9]{7}$")`)
	}
}
