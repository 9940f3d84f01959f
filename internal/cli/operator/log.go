package operator

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/translog"
)

// NewLog returns brevet log: print the log.
func NewLog() *cobra.Command {
	cmd := &cobra.Command{Use: "log", Short: "Read and verify the log of everything that changed"}
	client.Flags(cmd)
	cmd.AddCommand(newLogList(), newLogVerify())
	return cmd
}

func newLogList() *cobra.Command {
	req := &brevetv1.ListEntriesRequest{}
	cmd := &cobra.Command{
		Use: "list", Short: "List who did what, the oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := output.New(cmd, "INDEX", "TIME", "WHO", "WHAT", "OUTCOME", "IDENTITY", "SERIALS", "FACTS")
			if err != nil {
				return err
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				stream, err := brevetv1.NewLogServiceClient(conn).ListEntries(ctx, req)
				if err != nil {
					return err
				}
				err = eachOf(stream.Recv, func(e *brevetv1.ListEntriesResponse) error { return printEntry(p, e) })
				return errors.Join(err, p.Close())
			})
		},
	}
	output.Flag(cmd)
	cmd.Flags().Int64Var(&req.StartIndex, "from", 1, "first index")
	cmd.Flags().Int64Var(&req.Limit, "limit", 0, "how many at most (default all)")
	return cmd
}

func printEntry(p *output.Printer, r *brevetv1.ListEntriesResponse) error {
	e, err := translog.ParseEntry(r.GetEntry())
	if err != nil {
		return fmt.Errorf("entry %d: %w", r.GetIndex(), err)
	}
	if p.JSON {
		return printEntryJSON(p, r.GetIndex(), e)
	}
	var facts, serials []string
	for _, k := range slices.Sorted(maps.Keys(e.Facts)) {
		facts = append(facts, output.Pair(k, e.Facts[k]))
	}
	for _, c := range e.Changes {
		serials = append(serials, c.Ref.Serial.String())
	}
	identity := e.Identity.String()
	if identity == "" {
		identity = "-"
	}
	return p.Row([]string{
		strconv.FormatInt(r.GetIndex(), 10), e.Time.Format(time.RFC3339), e.Actor.String(), string(e.Action), string(e.Outcome),
		identity, dash(serials), dash(facts),
	})
}

// entryJSON is an entry with everything spelled out that its encoding leaves out.
type entryJSON struct {
	Time     time.Time         `json:"time"`
	Actor    string            `json:"actor"`
	Action   translog.Action   `json:"action"`
	Outcome  translog.Outcome  `json:"outcome"`
	Identity string            `json:"identity"`
	Changes  []changeJSON      `json:"changes"`
	Facts    map[string]string `json:"facts"`
}

// changeJSON is a status change. Issuer, serial number and fingerprint are hexadecimal.
type changeJSON struct {
	Issuer      string    `json:"issuer"`
	Serial      string    `json:"serial"`
	NotAfter    time.Time `json:"not_after"`
	Version     uint64    `json:"version"`
	State       string    `json:"state"`
	Reason      string    `json:"reason,omitempty"`
	RevokedAt   time.Time `json:"revoked_at,omitzero"`
	Fingerprint string    `json:"fingerprint,omitempty"`
}

// printEntryJSON adds to an entry its place in the log.
func printEntryJSON(p *output.Printer, index int64, e translog.Entry) error {
	j := entryJSON{
		Time: e.Time, Actor: e.Actor.String(), Action: e.Action, Outcome: e.Outcome, Identity: e.Identity.String(),
		Changes: []changeJSON{}, Facts: map[string]string{},
	}
	maps.Copy(j.Facts, e.Facts)
	for _, c := range e.Changes {
		change := changeJSON{
			Issuer: c.Ref.Issuer.String(), Serial: c.Ref.Serial.String(), NotAfter: c.NotAfter, Version: c.Status.Version,
			State: c.Status.State.String(), Fingerprint: hex.EncodeToString(c.Fingerprint),
		}
		if c.Status.State != pki.Good {
			change.Reason, change.RevokedAt = c.Status.Reason.String(), c.Status.RevokedAt
		}
		j.Changes = append(j.Changes, change)
	}
	b, err := json.Marshal(struct {
		Index int64     `json:"index"`
		Entry entryJSON `json:"entry"`
	}{index, j})
	if err != nil {
		return err
	}
	return p.Raw(b)
}

func newLogVerify() *cobra.Command {
	var archive string
	cmd := &cobra.Command{
		Use: "verify", Short: "Check that the log's chain has no gap and no changed entry", Args: cobra.NoArgs,
		Long: "verify reads every entry from the server, computes the chain itself, and compares its end with the head that the\n" +
			"server's archive has. With --archive it checks an archive file instead, without a server.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if archive != "" {
				return verifyArchive(cmd.OutOrStdout(), archive)
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				return verifyServer(ctx, cmd.OutOrStdout(), brevetv1.NewLogServiceClient(conn))
			})
		},
	}
	cmd.Flags().StringVar(&archive, "archive", "", "archive file to check instead")
	return cmd
}

func verifyArchive(out io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	head, err := translog.Read(f, func(translog.Sequenced) error { return nil })
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return printHead(out, head, path)
}

func printHead(out io.Writer, head translog.Head, where string) error {
	_, err := fmt.Fprintf(out, "%d entries in %s, without gap or change.\nThe last one chains to %s: keep it, and a later verification proves that nothing before it was rewritten.\n",
		head.Size, where, head.Chain)
	return err
}

func verifyServer(ctx context.Context, out io.Writer, c brevetv1.LogServiceClient) error {
	want, err := c.GetHead(ctx, &brevetv1.GetHeadRequest{})
	if err != nil {
		return err
	}
	stream, err := c.ListEntries(ctx, &brevetv1.ListEntriesRequest{StartIndex: 1, Limit: want.GetSize()})
	if err != nil {
		return err
	}
	v := translog.NewVerifier(translog.Head{})
	err = eachOf(stream.Recv, func(e *brevetv1.ListEntriesResponse) error {
		s := translog.Sequenced{Index: uint64(e.GetIndex()), Entry: e.GetEntry()} //nolint:gosec // a wrong one is a gap
		if len(e.GetChain()) != len(s.Chain) {
			return fmt.Errorf("entry %d has no chain value", e.GetIndex())
		}
		copy(s.Chain[:], e.GetChain())
		return v.Add(s)
	})
	if err != nil {
		return err
	}
	head := v.Head()
	if int64(head.Size) != want.GetSize() || string(head.Chain[:]) != string(want.GetChain()) { //nolint:gosec // a count
		return fmt.Errorf("the log and its archive differ: the log ends at %d in %s, the archive at %d in %x: keep both, and find out who changed which",
			head.Size, head.Chain, want.GetSize(), want.GetChain())
	}
	return printHead(out, head, "the log and the archive")
}
