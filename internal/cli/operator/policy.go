package operator

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/ra/revisions"
)

// maxPolicyFile is one byte more than the maximum size of a policy. A longer file is refused when it is checked.
const maxPolicyFile = 1<<20 + 1

// NewPolicy returns brevet policy, with subcommands that check and test policies.
func NewPolicy() *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy", Short: "Check, test and apply the rules that decide what evidence grants",
		Long: "A policy is a YAML document with certificate profiles, and rules from evidence to identities. check and test need\n" +
			"no server, so that a policy can be reviewed and tested like code before it is applied.",
	}
	for _, sub := range []*cobra.Command{newPolicyApply(), newPolicyShow(), newPolicyDiff(), newPolicyList(), newPolicyExplain()} {
		client.Flags(sub)
		cmd.AddCommand(sub)
	}
	cmd.AddCommand(newPolicyCheck(), newPolicyTest())
	return cmd
}

// offlineDomain stands in for the trust domain and the host of the public URL. No decision depends on them.
const offlineDomain = "policy.example"

// offlineCompiler returns a compiler that only checks.
func offlineCompiler() revisions.Compiler {
	log := slog.New(slog.DiscardHandler)
	return revisions.Compiler{
		TrustDomain: offlineDomain, PublicURL: "http://" + offlineDomain, Files: revisions.NewFiles("", log), Clock: time.Now, Log: log,
	}
}

// faultRecord is a fault as --output json prints it.
type faultRecord struct {
	File    string   `json:"file"`
	Line    int      `json:"line"`
	Subject string   `json:"subject"`
	Key     string   `json:"key"`
	Problem string   `json:"problem"`
	Rules   []string `json:"rules,omitempty"`
}

// print prints the fault as "file:line: subject: key: problem", and what became of the rules below it.
func (r faultRecord) print(p *output.Printer) error {
	f := policy.Fault{Rule: r.Subject, Key: r.Key, Problem: r.Problem}
	text := r.File + ": " + f.Text()
	if r.Line > 0 {
		text = fmt.Sprintf("%s:%d: %s", r.File, r.Line, f.Text())
	}
	return p.Sentence(r, strings.Join(append([]string{text}, r.Rules...), "\n    "))
}

// reportFaults prints the faults of a file, and returns an error that says how many there are. It returns any other
// error unchanged.
func reportFaults(p *output.Printer, path string, err error) error {
	var faults policy.Faults
	if !errors.As(err, &faults) {
		return err
	}
	for _, f := range faults {
		if err := (faultRecord{path, f.Line, f.Rule, f.Key, f.Problem, nil}).print(p); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s has %s", path, counted(len(faults), "fault"))
}

// counted returns a number with its noun.
func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// readPolicy checks the policy in a file. It prints its faults.
func readPolicy(p *output.Printer, path string) (*policy.Policy, error) {
	document, err := readPolicyFile(path)
	if err != nil {
		return nil, err
	}
	compiled, err := offlineCompiler().Compile(document, 0)
	if err != nil {
		return nil, reportFaults(p, path, err)
	}
	return compiled.Rules, nil
}

func readPolicyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxPolicyFile))
}

func newPolicyCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check FILE", Short: "Check a policy, and print all its faults", Args: cobra.ExactArgs(1),
		Long: "check finds unknown keys, repeated names, conditions with a wrong type or a high cost, templates in which two\n" +
			"devices could get the same identity, wrong and unknown profiles, and rules that no request can reach. It exits with\n" +
			"1 if there is a fault. Whether the CA can issue certificates of the profiles is checked by brevet policy apply.",
		Example: "  brevet policy check policy.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			compiled, err := readPolicy(p, args[0])
			if err != nil {
				return err
			}
			rules, labels := compiled.Rules(), labelRecords(compiled.Labels())
			text := fmt.Sprintf("%s has %s and no faults", args[0], counted(len(rules), "rule"))
			for _, l := range labels {
				text += "\n" + l.text()
			}
			return p.Sentence(struct {
				File   string        `json:"file"`
				Rules  []string      `json:"rules"`
				Labels []labelRecord `json:"est_labels,omitempty"`
			}{args[0], rules, labels}, text)
		},
	}
	output.Flag(cmd)
	return cmd
}

func newPolicyTest() *cobra.Command {
	cmd := &cobra.Command{
		Use: "test FILE TABLE", Short: "Compare the decisions of a policy with expected ones", Args: cobra.ExactArgs(2),
		Long: "test decides about every case in TABLE, a YAML document with the facts of evidence and the expected rule, identity\n" +
			"and profile, or the expected refusal. For each case with another decision, it prints which rules were tried, and\n" +
			"which parts of their conditions are false. It exits with 1 if there is such a case, or a fault in a file.",
		Example: "  brevet policy test policy.yaml policy-test.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			compiled, err := readPolicy(p, args[0])
			if err != nil {
				return err
			}
			table, err := readPolicyFile(args[1])
			if err != nil {
				return err
			}
			results, err := compiled.Test(table)
			if err != nil {
				return reportFaults(p, args[1], err)
			}
			return printResults(p, args[1], results)
		},
	}
	output.Flag(cmd)
	return cmd
}

// printResults prints the cases that did not pass, and returns an error if there are any.
func printResults(p *output.Printer, path string, results []policy.Result) error {
	failed := 0
	for _, r := range results {
		if r.Problem == "" {
			continue
		}
		failed++
		record := faultRecord{File: path, Line: r.Line, Subject: "case " + r.Case, Problem: r.Problem}
		for _, t := range r.Trials {
			record.Rules = append(record.Rules, t.String())
		}
		if err := record.print(p); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %s failed", failed, counted(len(results), "case"))
	}
	return p.Sentence(struct {
		File   string `json:"file"`
		Passed int    `json:"passed"`
	}{path, len(results)}, counted(len(results), "case")+" passed")
}
