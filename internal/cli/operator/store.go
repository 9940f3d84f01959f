package operator

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// NewStore returns brevet store, which prints statistics of the server's store.
func NewStore() *cobra.Command {
	cmd := &cobra.Command{Use: "store", Short: "See how the server's store grows and shrinks"}
	client.Flags(cmd)
	cmd.AddCommand(newStoreStats())
	return cmd
}

func newStoreStats() *cobra.Command {
	cmd := &cobra.Command{
		Use: "stats", Short: "Count what the store holds, and what waits to leave it", Args: cobra.NoArgs,
		Long: "stats counts certificates, identities, tokens and keys. Each count ends at a million, and then\n" +
			"says \"at least\". Counting holds up nobody who issues.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				stats, err := brevetv1.NewStoreServiceClient(conn).GetStats(ctx, &brevetv1.GetStatsRequest{})
				if err != nil {
					return err
				}
				if err := printStats(p, stats); err != nil {
					return err
				}
				return p.Close()
			})
		},
	}
	output.Flag(cmd)
	return cmd
}

// printStats prints the statistics as one JSON object, or as rows of a table.
func printStats(p *output.Printer, s *brevetv1.GetStatsResponse) error {
	if p.JSON {
		return p.Record(s)
	}
	c, i, t, k, r := s.GetCertificates(), s.GetIdentities(), s.GetTokens(), s.GetKeys(), s.GetRetention()
	retention := r.GetRetention().AsDuration()
	for _, row := range [][]string{
		{"certificates", counts(number{c.GetGood(), "good"}, number{c.GetOnHold(), "on hold"}, number{c.GetRevoked(), "revoked"}, number{c.GetUndelivered(), "never delivered"})},
		{"", counts(number{c.GetUnexpired(), "unexpired"}, number{c.GetRetained(), "expired"}, number{c.GetRemovable(), "waiting to leave"})},
		{"", "the oldest ended, or ends, at " + timeOr(c.GetOldestNotAfter(), "no time: there is none")},
		{"identities", counts(number{i.GetRegistered(), "registered"}, number{i.GetEnrolled(), "enrolled"}, number{i.GetSuspended(), "suspended"}, number{i.GetRetired(), "retired"})},
		{"tokens", counts(number{t.GetOpen(), "open"}, number{t.GetSpent(), "spent"}, number{t.GetExpired(), "expired"})},
		{"keys", counts(number{k.GetKnown(), "known"}, number{k.GetCompromised(), "compromised"})},
		{"log", strconv.FormatInt(s.GetLogEntries(), 10) + " entries"},
		{"files", filesText(s)},
		{"retention", fmt.Sprintf("%gd: what ended before %s leaves", retention.Hours()/24, timeOr(r.GetCutoffTime(), "-"))},
		{"last sweep", fmt.Sprintf("%s: %d certificates, %d tokens and %d keys left",
			timeOr(r.GetLastSweepTime(), "none yet"), r.GetRemovedCertificates(), r.GetRemovedTokens(), r.GetRemovedKeys())},
	} {
		if err := p.Row(row); err != nil {
			return err
		}
	}
	return nil
}

// number is a count and the noun that follows it in the output.
type number struct {
	n  *brevetv1.Count
	of string
}

func counts(numbers ...number) string {
	var parts []string
	for _, c := range numbers {
		atLeast := ""
		if c.n.GetAtLeast() {
			atLeast = "at least "
		}
		parts = append(parts, fmt.Sprintf("%s%d %s", atLeast, c.n.GetValue(), c.of))
	}
	return strings.Join(parts, ", ")
}

func timeOr(t *timestamppb.Timestamp, none string) string {
	if t == nil {
		return none
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

func filesText(s *brevetv1.GetStatsResponse) string {
	var parts []string
	for _, f := range s.GetFiles() {
		parts = append(parts, f.GetName()+" "+mebibytes(f.GetBytes()))
	}
	return strings.Join(parts, ", ") + fmt.Sprintf("; %s free", mebibytes(s.GetFreeBytes()))
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
