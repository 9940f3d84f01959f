package operator

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// reason holds the flags that say why and since when certificates are revoked.
type reason struct{ name, since, comment string }

// reasonHelp returns the paragraph about these flags in the help of a command.
func reasonHelp() string {
	names := slices.DeleteFunc(pki.ReasonNames(), func(name string) bool { return name == pki.CertificateHold.String() })
	return "A revocation is final. What is on hold is revoked; what is revoked stays as it is, and can only be made\n" +
		"keyCompromise. After keyCompromise, no key of the certificates is ever certified again.\n" +
		"Reasons:\n" + strings.Join(names, ", ") + "."
}

func (r *reason) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.name, "reason", "", "name of the revocation reason (RFC 5280 section 5.3.1) (default unspecified)")
	sinceFlag(cmd, &r.since)
	commentFlag(cmd, &r.comment)
}

func sinceFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "invalid-since", "", "time since which the certificates are known or suspected to be invalid, for the CRL (RFC 5280 section 5.3.2)")
}

func commentFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "comment", "", "free text that the log records as the reason")
}

// read returns the reason and the invalidity time for a request.
func (r *reason) read() (brevetv1.RevocationReason, *timestamppb.Timestamp, error) {
	since, err := readTime("--invalid-since", r.since)
	if err != nil {
		return 0, nil, err
	}
	code, err := readReason(r.name)
	return code, since, err
}

// readTime parses a time, or a date, which means its first second in UTC. For an empty text it returns nil.
func readTime(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // an optional field that is not set
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return timestamppb.New(t), nil
		}
	}
	return nil, cli.WrongUse(fmt.Sprintf("%s %q: write it like 2026-03-01T04:00:00Z or 2026-03-01", flag, text))
}

// printAffected writes to standard error how many certificates a change affected. If none of them is valid, it prints a
// warning, because the operator may have selected the wrong certificates.
func printAffected(cmd *cobra.Command, verb string, n *brevetv1.AffectedCertificates) {
	out := cmd.ErrOrStderr()
	fmt.Fprintf(out, "%s %s\n", verb, affectedText(n.GetValid(), n.GetExpired()))
	if n.GetValid() == 0 {
		fmt.Fprintf(out, "WARNING: %s 0 certificates that are valid. Look at what is on record with brevet cert list. Those already in this state are not counted.\n", verb)
	}
}

// affectedText returns a sentence with the numbers of affected certificates.
func affectedText(valid, expired int64) string {
	are, have := "are", "have"
	if valid == 1 {
		are = "is"
	}
	if expired == 1 {
		have = "has"
	}
	return fmt.Sprintf("%s that %s valid, %d that %s expired", certificates(valid), are, expired, have)
}
