package grpcapi

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/outcome"
)

var rows = regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| ([A-Z_]+) \\| ([0-9]+) \\| ([^|]+) \\| ([^|]+) \\|$")

// TestEveryRuleIsDocumented compares the table of docs/errors.md with the rules, their codes and their HTTP statuses.
func TestEveryRuleIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string][]string{}
	for _, row := range rows.FindAllStringSubmatch(string(text), -1) {
		if documented[row[1]] != nil {
			t.Errorf("%s has two rows", row[1])
		}
		documented[row[1]] = row[2:]
	}
	for _, rule := range pki.Rules() {
		o := outcome.Of(rule)
		row := documented[string(rule)]
		delete(documented, string(rule))
		if want := []string{code.Code(o.GRPC).String(), fmt.Sprint(o.HTTP)}; len(row) != 4 || row[0] != want[0] || row[1] != want[1] {
			t.Errorf("%s has the row %q, want %q, what it means and what to do", rule, row, want)
		}
	}
	for rule := range documented {
		t.Errorf("%s is no rule", rule)
	}
}

// A refusal is in the status message, in an ErrorInfo and in a brevet.v1.Refusal. Clients without Brevet's protobuf
// messages can read the first two.
func TestRefusalsCarryErrorInfo(t *testing.T) {
	st, own := statusOf(pki.Refuse(pki.RuleToken, "ask for another", "the token does not serve"))
	var info *errdetails.ErrorInfo
	var refusal *brevetv1.Refusal
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *brevetv1.Refusal:
			refusal = d
		}
	}
	if own || info.GetReason() != "token.invalid" || info.GetDomain() != "brevet" || refusal.GetRule() != "token.invalid" || refusal.GetHint() != "ask for another" {
		t.Errorf("the status is %v", st)
	}
	if strings.Contains(st.String(), "RetryInfo") {
		t.Error("a refusal that does not pass says when to repeat the call")
	}
}
