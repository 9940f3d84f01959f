package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// revoking is what the flags of brevet cert revoke say.
type revoking struct {
	selection                brevetv1.CertificateSelection
	label                    string
	issuedFrom, issuedTill   string
	reason, since, comment   string
	dryRun, yes              bool
	set                      string
	issuer, lineage, keyHash string
	key                      string
	contact                  contact
	hint                     string // what to do after an error, beside what the error says
}

// The flags that select certificates, and those that belong to one way of revoking.
var (
	selectors  = []string{"issuer", "identity", "lineage-of", "key", "profile", "label", "issued-from", "issued-until"}
	contacting = []string{"server", "root", "trust-domain"}
)

const revokeLong = `revoke takes effect before it returns: OCSP and the server's own gate know of it, and a CRL follows.

It revokes one certificate by its serial number, or all for which every selecting flag holds that is given: --issuer
(alone: all of one issuing CA), --identity, --lineage-of (a certificate and all renewed from it), --key, --profile,
--label, --issued-from and --issued-until. It counts them first, shows the count and asks; --dry-run stops there, and
--yes does not ask. The order is durable and in effect at once, for those on record at that moment: what is issued
afterwards is not revoked. To keep holders from getting more, suspend or retire their identities (brevet identity).
The records of a large set, and the CRL, follow within seconds: a bar shows how far they are. Interrupting it stops
nothing, nor does a restart of the server; --set shows it again.

A whole issuing CA takes two steps: --issuer revokes what it has issued, and brevet ceremony crl has the root revoke its
own certificate.

A revocation is final. What is on hold is revoked; what is revoked stays as it is, and can only be made keyCompromise.
After keyCompromise, no key of the certificates is ever certified again. Reasons: %s.

With --compromised-key, the private key itself is the proof that it is compromised: no operator's credential is needed.`

func newCertRevoke() *cobra.Command {
	var r revoking
	cmd := &cobra.Command{
		Use: "revoke [SERIAL]", Short: "Revoke certificates, now and for ever", Args: cobra.MaximumNArgs(1),
		Long: fmt.Sprintf(revokeLong, strings.Join(pki.ReasonNames(), ", ")),
		Example: "  brevet cert revoke 0192F3A4… --reason keyCompromise --invalid-since 2026-03-01T04:00:00Z\n" +
			"  brevet cert revoke --label batch=2026-07 --reason privilegeWithdrawn --dry-run\n" +
			"  brevet cert revoke --issuer 5be1… --reason cACompromise\n" +
			"  brevet cert revoke --set 3\n" +
			"  brevet cert revoke --compromised-key leaked.pem --server ca.fleet.example:7443 --root root.crt --trust-domain fleet.example",
		RunE: func(cmd *cobra.Command, args []string) error { return r.run(cmd, args) },
	}
	output.Flag(cmd)
	f := cmd.Flags()
	f.StringVar(&r.issuer, "issuer", "", "by issuing CA: 64 hexadecimal digits, as brevet crl list --output json has them")
	f.StringVar(&r.selection.Identity, "identity", "", "by identity, such as device/42")
	f.StringVar(&r.lineage, "lineage-of", "", "by lineage: the serial number of the certificate that it begins with")
	f.StringVar(&r.keyHash, "key", "", "by public key: the SHA-256 of the SubjectPublicKeyInfo, in hexadecimal")
	f.StringVar(&r.selection.Profile, "profile", "", "by profile")
	f.StringVar(&r.label, "label", "", "by a label of the identity, as NAME=VALUE")
	f.StringVar(&r.issuedFrom, "issued-from", "", "by time of issue, from this on: 2026-03-01T04:00:00Z, or 2026-03-01 for its first second in UTC")
	f.StringVar(&r.issuedTill, "issued-until", "", "by time of issue, before this")
	f.StringVar(&r.reason, "reason", "", "why, by its name in RFC 5280 (default unspecified)")
	f.StringVar(&r.since, "invalid-since", "", "when they are known or suspected to have become invalid, for the CRL (RFC 5280 section 5.3.2)")
	f.StringVar(&r.comment, "comment", "", "why, in words, for the log")
	f.BoolVar(&r.dryRun, "dry-run", false, "count what the selection has, and revoke nothing")
	f.BoolVar(&r.yes, "yes", false, "do not ask")
	f.StringVar(&r.set, "set", "", "show how far an earlier bulk revocation has come, by its ID")
	f.StringVar(&r.key, "compromised-key", "", "file with a private key that is compromised, in PEM: revoke all that it has")
	r.contact.flags(f)
	return cmd
}

func (r *revoking) run(cmd *cobra.Command, args []string) error {
	selects := changedOf(cmd, selectors)
	ways := 0
	for _, given := range []bool{len(args) == 1, len(selects) > 0, cmd.Flags().Changed("set"), r.key != ""} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		return cli.WrongUse("say what to revoke in one way: a serial number, flags that select (--" + strings.Join(selectors, ", --") + "), --set or --compromised-key")
	}
	if (r.dryRun || r.yes) && len(selects) == 0 {
		return cli.WrongUse("--dry-run and --yes go with flags that select")
	}
	if r.key == "" && len(changedOf(cmd, contacting)) > 0 {
		return cli.WrongUse("--server, --root and --trust-domain go with --compromised-key: otherwise the operator's credential says them")
	}
	if (r.key != "" || cmd.Flags().Changed("set")) && len(changedOf(cmd, []string{"reason", "invalid-since", "comment"})) > 0 {
		return cli.WrongUse("--reason, --invalid-since and --comment go with a serial number or flags that select")
	}
	since, err := readTime("--invalid-since", r.since)
	if err != nil {
		return err
	}
	reason, err := readReason(r.reason)
	if err != nil {
		return err
	}
	switch {
	case r.key != "":
		return r.revokeKey(cmd)
	case cmd.Flags().Changed("set"):
		return r.watchSet(cmd)
	case len(args) == 1:
		serial, err := readSerial(args[0])
		if err != nil {
			return err
		}
		return r.revokeOne(cmd, &brevetv1.RevokeCertificateRequest{Serial: serial, Reason: reason, InvalidityTime: since, Comment: r.comment})
	default:
		return r.revokeSelected(cmd, &brevetv1.CreateBulkRevocationRequest{Selection: &r.selection, Reason: reason, InvalidityTime: since, Comment: r.comment})
	}
}

// changedOf are those flags that were given.
func changedOf(cmd *cobra.Command, names []string) (changed []string) {
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			changed = append(changed, name)
		}
	}
	return changed
}

// readTime reads a time or a date, which is its first second in UTC; nil where none was given.
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

func (r *revoking) revokeOne(cmd *cobra.Command, req *brevetv1.RevokeCertificateRequest) error {
	p, err := output.New(cmd, certHeading...)
	if err != nil {
		return err
	}
	return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		resp, err := brevetv1.NewRevocationServiceClient(conn).RevokeCertificate(ctx, req)
		if err != nil {
			return err
		}
		tellChanged(cmd, "revoked", resp.GetAffected())
		return errors.Join(printCert(p, resp.GetCertificate()), p.Close())
	})
}

// tellChanged says on standard error how many certificates an order has changed. If none of them is valid, it warns: the
// order may have missed what it was meant for.
func tellChanged(cmd *cobra.Command, verb string, n *brevetv1.AffectedCertificates) {
	out := cmd.ErrOrStderr()
	fmt.Fprintf(out, "%s %s\n", verb, reachedText(n.GetValid(), n.GetExpired()))
	if n.GetValid() == 0 {
		fmt.Fprintf(out, "WARNING: %s 0 certificates that are valid. Look at what is on record with brevet cert list. Those already in this state are not counted.\n", verb)
	}
}

func reachedText(valid, ended int64) string {
	are, have := "are", "have"
	if valid == 1 {
		are = "is"
	}
	if ended == 1 {
		have = "has"
	}
	return fmt.Sprintf("%s that %s valid, %d that %s ended", certificates(valid), are, ended, have)
}

var setHeading = []string{"SET", "CERTIFICATES", "IN RECORDS AND CRL", "REASON", "SELECTION"}

func printSet(p *output.Printer, s *brevetv1.BulkRevocation) error {
	id, followed := "-", "-" // of what was only counted
	if s.GetId() != "" {
		id, followed = s.GetId(), "all"
		if !done(s) {
			followed = fmt.Sprint(s.GetApplied())
		}
	}
	return errors.Join(p.Record(s, id, fmt.Sprint(s.GetTotal()), followed, output.Enum(s.GetReason()), selectionText(s.GetSelection())), p.Close())
}

func selectionText(s *brevetv1.CertificateSelection) string {
	var parts []string
	for _, f := range []struct{ name, value string }{
		{"issuer", output.Hex(s.GetIssuerId())}, {"identity", s.GetIdentity()}, {"lineage-of", output.Hex(s.GetLineageSerial())}, {"key", output.Hex(s.GetKeyHash())}, {"profile", s.GetProfile()},
	} {
		if f.value != "" {
			parts = append(parts, f.name+" "+f.value)
		}
	}
	if l := s.GetLabel(); l != nil {
		parts = append(parts, "label "+output.Pair(l.GetName(), l.GetValue()))
	}
	if s.GetIssueStartTime() != nil {
		parts = append(parts, "issued from "+s.GetIssueStartTime().AsTime().Format(time.RFC3339))
	}
	if s.GetIssueEndTime() != nil {
		parts = append(parts, "issued until "+s.GetIssueEndTime().AsTime().Format(time.RFC3339))
	}
	return strings.Join(parts, ", ")
}

// readSelection completes the selection by the flags that are not texts of the request.
func (r *revoking) readSelection(cmd *cobra.Command) error {
	if cmd.Flags().Changed("label") {
		name, value, err := parseLabel(r.label)
		if err != nil {
			return cli.WrongFlag("--label", err)
		}
		r.selection.Label = &brevetv1.Label{Name: name, Value: value}
	}
	var err error
	if r.selection.IssuerId, err = readHash("--issuer", r.issuer); err != nil {
		return err
	}
	if r.selection.KeyHash, err = readHash("--key", r.keyHash); err != nil {
		return err
	}
	if r.lineage != "" {
		if r.selection.LineageSerial, err = readSerial(r.lineage); err != nil {
			return err
		}
	}
	if r.selection.IssueStartTime, err = readTime("--issued-from", r.issuedFrom); err != nil {
		return err
	}
	r.selection.IssueEndTime, err = readTime("--issued-until", r.issuedTill)
	return err
}

// revokeSelected shows how many certificates a selection has, asks, revokes them, and follows their records.
func (r *revoking) revokeSelected(cmd *cobra.Command, req *brevetv1.CreateBulkRevocationRequest) error {
	if err := r.readSelection(cmd); err != nil {
		return err
	}
	if !r.yes && !r.dryRun && !isTerminal(cmd.InOrStdin()) {
		return cli.WrongUse("standard input is no terminal, so nobody can be asked: say --yes, or --dry-run to count")
	}
	p, err := output.New(cmd, setHeading...)
	if err != nil {
		return err
	}
	return r.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		c := brevetv1.NewRevocationServiceClient(conn)
		req.DryRun = true
		counted, err := c.CreateBulkRevocation(ctx, req)
		if err != nil {
			return err
		}
		if r.dryRun {
			set := counted.GetBulkRevocation()
			tellChanged(cmd, "would revoke", &brevetv1.AffectedCertificates{Valid: set.GetTotal() - set.GetExpired(), Expired: set.GetExpired()})
			return printSet(p, counted.GetBulkRevocation())
		}
		n := counted.GetBulkRevocation().GetTotal()
		fmt.Fprintf(cmd.ErrOrStderr(), "%s for %s, for ever: %s.\n", certificates(n), output.Enum(counted.GetBulkRevocation().GetReason()), selectionText(counted.GetBulkRevocation().GetSelection()))
		if !r.yes {
			if err := confirm(cmd, n); err != nil {
				return err
			}
		}
		req.DryRun = false
		r.hint = "ordering it again does no harm where this order was recorded all the same"
		resp, err := c.CreateBulkRevocation(ctx, req)
		if err != nil {
			return err
		}
		set := resp.GetBulkRevocation()
		r.hint = watchAgain(set.GetId())
		fmt.Fprintf(cmd.ErrOrStderr(), "%s, in effect now (set %s).\n", revokedText(set.GetTotal()), set.GetId())
		tellChanged(cmd, "revoked", &brevetv1.AffectedCertificates{Valid: set.GetTotal() - set.GetExpired(), Expired: set.GetExpired()})
		return followSet(ctx, cmd, p, c, set)
	})
}

// call calls the server as call does, and adds the hint to an error.
func (r *revoking) call(cmd *cobra.Command, do func(context.Context, *grpc.ClientConn) error) error {
	err := client.Call(cmd, do)
	if err == nil || r.hint == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, r.hint)
}

// watchAgain is for whoever looks at a set and then does not.
func watchAgain(set string) string {
	return fmt.Sprintf("the work goes on in the server, and brevet cert revoke --set %s shows it again", set)
}

func certificates(n int64) string {
	if n == 1 {
		return "1 certificate"
	}
	return fmt.Sprintf("%d certificates", n)
}

func revokedText(n int64) string {
	if n == 1 {
		return "1 certificate is revoked"
	}
	return fmt.Sprintf("%d certificates are revoked", n)
}

func (r *revoking) watchSet(cmd *cobra.Command) error {
	p, err := output.New(cmd, setHeading...)
	if err != nil {
		return err
	}
	return r.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		c := brevetv1.NewRevocationServiceClient(conn)
		resp, err := c.GetBulkRevocation(ctx, &brevetv1.GetBulkRevocationRequest{Id: r.set})
		if err != nil {
			return err
		}
		r.hint = watchAgain(r.set)
		return followSet(ctx, cmd, p, c, resp.GetBulkRevocation())
	})
}
