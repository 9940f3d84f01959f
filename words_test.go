package brevet_test

import (
	"fmt"
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The test in this file ensures that there is only one word for one thing (docs/glossary.md). It finds retired words in
// the comments and string literals of Go files and in the documents, and says which words to use instead.

// A retiredWord is a word that is no longer used.
type retiredWord struct {
	old string // regular expression for whole words, ignoring case
	new string // the words to use instead
	// in lists the folders and documents that must not use the word. Nil means all of them.
	in []string
}

// plain lists folders and documents with the strictest rules. A folder includes the folders below it.
var plain = []string{
	"audit", "ca", "enroll", "fair", "files", "hsm", "pki", "ra", "revocation", "server", "store/memory", "store/retention", "store/rules", "store/sqlite", "store/storetest", "torture",
	"translog", "internal/bench", "internal/cli/devca", "internal/cli/file", "internal/cli/output", "internal/config",
	"docs/architecture.md", "docs/code-map.md", "docs/decisions", "docs/configuration.md", "docs/glossary.md", "docs/operations.md", "docs/relying-parties.md", "docs/threat-model.md",
}

var retiredWords = []retiredWord{
	{old: "octets?", new: "bytes"},
	{old: "sheets?", new: "CRL builder"},
	{old: "shel(f|ves)", new: "published directory"},
	{old: "understudy", new: "lint signer"},
	{old: "vouchers?", new: "chain cache"},
	{old: "intake", new: "admission"},
	{old: "wan(e|es|ing)", new: "expire"},
	{old: "revocation sets?", new: "bulk revocation"},
	{old: "unproven|overcrowded|oversized|unserved|conflicting", new: "the class with the name of the gRPC code"},
	{old: "dialects?", new: "the field's word"},
	{old: "lanes?", new: "queue"},
	{old: "throwaway", new: "ephemeral"},
	{old: "rubbish", new: "malformed input"},

	// Rules.
	{old: `identity\.changed`, new: "identity.stale"},
	{old: `identity\.enrolled`, new: "identity.already_enrolled"},
	{old: `predecessor\.clone`, new: "renewal.key_conflict"},
	{old: `predecessor\.unknown`, new: "renewal.certificate_unknown"},
	{old: `key\.foreign`, new: "key.in_use"},
	{old: `record\.unknown`, new: "not_found"},
	{old: `revocation\.final`, new: "certificate.already_revoked"},
	{old: `request\.reused`, new: "request_id.reused"},
	{old: `server\.busy`, new: "server.overloaded"},

	// Metrics.
	{old: "brevet_call_seconds", new: "brevet_rpc_duration_seconds"},
	{old: "brevet_records_waiting", new: "brevet_expired_records"},
	{old: `brevet_token_\w+`, new: "brevet_hsm_…"},

	// Alerts.
	{old: "BrevetCallsFail", new: "BrevetRPCsFail"},

	// Configuration keys.
	{old: `traces\.share`, new: "tracing.sample_ratio"},
	{old: `token\.(pin_file|label|serial|module|sessions)`, new: "hsm.…"},
	{old: `limits\.(identity|address)`, new: "rate_limits.…"},

	{old: "patience", new: "timeout", in: plain},
	{old: "hears?|heard", new: "is notified, gets a response", in: plain},
	{old: "verdicts?", new: "result", in: plain},
	{old: "whoever|somebody", new: "the name of the actor", in: plain},
	{old: "announces?|announced", new: "prepare, write an intent", in: plain},
	{old: "settles|settle", new: "commit", in: plain},
	{old: "turned away", new: "rejected", in: plain},
	{old: "trying again|tries again", new: "retrying", in: plain},
	{old: "at work", new: "active", in: plain},
	{old: "for ever", new: "forever, permanently", in: plain},
	{old: "anew", new: "again", in: plain},
	{old: "under way", new: "in progress", in: plain},
	{old: "(is|are|was|were) told", new: "is notified, gets a response", in: plain},
	{old: "never[ -]released", new: "never delivered", in: plain},
}

// allowedWords matches uses of retired words that are allowed: names in standards, and the output of other programs.
var allowedWords = []*regexp.Regexp{
	regexp.MustCompile(`(?i)OCTET STRING`),                            // the name of the ASN.1 type
	regexp.MustCompile(`RFC \d+.*octets?|octets?.*\(?RFC \d+`),        // a limit as an RFC words it
	regexp.MustCompile("`" + `json:"octets"` + "`"),                   // a field in the output of wrk
	regexp.MustCompile(`255 octets under a CA with name constraints`), // GnuTLS has the limit of RFC 5280
}

// faults returns a text for every retired word in a text. name is the file that contains the text.
func faults(name, text string) []string {
	var found []string
	for _, allowed := range allowedWords {
		text = allowed.ReplaceAllString(text, "")
	}
	for i, word := range retiredPatterns {
		if in := retiredWords[i].in; in != nil && !slices.ContainsFunc(in, func(p string) bool { return name == p || strings.HasPrefix(name, p+"/") }) {
			continue
		}
		for _, old := range word.FindAllString(text, -1) {
			found = append(found, fmt.Sprintf("%q: write %q instead", old, retiredWords[i].new))
		}
	}
	return found
}

var retiredPatterns = func() (all []*regexp.Regexp) {
	for _, w := range retiredWords {
		all = append(all, regexp.MustCompile(`(?i)\b(?:`+w.old+`)\b`))
	}
	return all
}()

// codeReferences matches code spans that name a Go file and its declarations.
var codeReferences = regexp.MustCompile("`[a-z][a-z0-9_/]*\\.go[^`\n]*`")

func TestRetiredWords(t *testing.T) {
	fset := token.NewFileSet()
	for _, name := range goFiles(t) {
		if strings.HasSuffix(name, ".pb.go") || name == "words_test.go" {
			continue
		}
		_, file := parse(t, fset, name)
		report := func(at token.Pos, text string) {
			for _, fault := range faults(name, text) {
				t.Errorf("%s: %s", fset.Position(at), fault)
			}
		}
		for _, group := range file.Comments {
			for _, c := range group.List {
				report(c.Pos(), c.Text)
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if literal, ok := n.(*ast.BasicLit); ok && literal.Kind == token.STRING {
				report(literal.Pos(), literal.Value)
			}
			return true
		})
	}
	for _, d := range documents(t) {
		if d.path == "CHANGELOG.md" { // the changelog contains the retired words
			continue
		}
		for n, line := range strings.Split(codeReferences.ReplaceAllString(d.text, ""), "\n") {
			for _, fault := range faults(d.path, line) {
				t.Errorf("%s:%d: %s", d.path, n+1, fault)
			}
		}
	}
}

func TestRetiredWordsAreFound(t *testing.T) {
	for text, want := range map[string]int{
		"20 octets": 1, "an Octet": 1, "an OCTET STRING": 0, "at most 20 octets (RFC 5280 section 4.1.2.2)": 0, "server.busy": 1,
		"bytes of the shelf": 1, "bookshelf": 0,
	} {
		if got := faults("ra/ra.go", text); len(got) != want {
			t.Errorf("%q has the faults %q, want %d", text, got, want)
		}
	}
	if a, b := faults("hsm/hsm.go", "the verdict"), faults("hsmx/x.go", "the verdict"); len(a) != 1 || len(b) != 0 {
		t.Errorf("a word that is retired in one folder: %q there, %q elsewhere", a, b)
	}
}
