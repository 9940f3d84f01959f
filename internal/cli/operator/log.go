package operator

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/translog"
)

// NewLog returns brevet log, with subcommands that print and verify the log.
func NewLog() *cobra.Command {
	cmd := &cobra.Command{Use: "log", Short: "Read and verify the log of everything that changed"}
	client.Flags(cmd)
	cmd.AddCommand(newLogList(), newLogVerify())
	return cmd
}

func newLogList() *cobra.Command {
	var epoch string
	req := &brevetv1.ListEntriesRequest{Start: &brevetv1.LogPosition{}}
	cmd := &cobra.Command{
		Use: "list", Short: "List who did what, the oldest first", Args: cobra.NoArgs,
		Long: "list prints the entries of the log. With --follow it goes on with new entries as they come, until it is interrupted; if\n" +
			"the connection or the server ends meanwhile, it connects again. An index means an entry of the log with one epoch, which\n" +
			"\"brevet log verify\" prints: with --epoch, a log that has another one since a restore is refused.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Start.Epoch, err = hex.DecodeString(epoch); err != nil {
				return fmt.Errorf("--epoch: %w: write it in hexadecimal, as brevet log verify prints it", err)
			}
			p, err := output.New(cmd, "INDEX", "TIME", "WHO", "WHAT", "OUTCOME", "IDENTITY", "SERIALS", "FACTS")
			if err != nil {
				return err
			}
			err = client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				return listEntries(ctx, brevetv1.NewLogServiceClient(conn), req, func(e *brevetv1.ListEntriesResponse) error { return printEntry(p, e) })
			})
			return errors.Join(err, p.Close())
		},
	}
	output.Flag(cmd)
	cmd.Flags().Int64Var(&req.Start.Index, "from", 1, "index of the first entry to print")
	cmd.Flags().StringVar(&epoch, "epoch", "", "log epoch of the index in --from, in hexadecimal (default any)")
	cmd.Flags().Int64Var(&req.Limit, "limit", 0, "maximum number of entries to print (default all)")
	cmd.Flags().BoolVarP(&req.Follow, "follow", "f", false, "print new entries as they are written, until interrupted")
	return cmd
}

// followPause is the delay before a command with --follow connects to the server again.
const followPause = time.Second

// listEntries calls visit for each entry. With --follow, if the server becomes unavailable, it connects again and
// continues after the last received entry. It returns an error if the log has another epoch by then.
func listEntries(
	ctx context.Context, c brevetv1.LogServiceClient, req *brevetv1.ListEntriesRequest, visit func(*brevetv1.ListEntriesResponse) error,
) error {
	if req.GetFollow() {
		head, err := c.GetHead(ctx, &brevetv1.GetHeadRequest{}) // fails if the server is unavailable from the beginning
		if err != nil {
			return err
		}
		if len(req.GetStart().GetEpoch()) == 0 {
			req.Start.Epoch = head.GetPosition().GetEpoch()
		}
	}
	for {
		stream, err := c.ListEntries(ctx, req)
		if err != nil {
			return err
		}
		err = eachOf(stream.Recv, func(e *brevetv1.ListEntriesResponse) error {
			if err := visit(e); err != nil {
				return err
			}
			req.Start = &brevetv1.LogPosition{Epoch: e.GetPosition().GetEpoch(), Index: e.GetPosition().GetIndex() + 1}
			if req.GetLimit() > 0 {
				req.Limit--
			}
			return nil
		})
		if req.GetFollow() && ctx.Err() != nil {
			return nil //nolint:nilerr // the user ends a command with --follow by an interrupt
		}
		if !req.GetFollow() || status.Code(err) != codes.Unavailable {
			return err
		}
		select {
		case <-time.After(followPause):
		case <-ctx.Done():
			return nil
		}
	}
}

func printEntry(p *output.Printer, r *brevetv1.ListEntriesResponse) error {
	e, err := translog.EntryOf(r.GetEntry())
	if err != nil {
		return fmt.Errorf("entry %d: %w", r.GetPosition().GetIndex(), err)
	}
	if p.JSON {
		return printEntryJSON(p, r.GetPosition(), e)
	}
	all := e.Facts()
	var facts, serials []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		facts = append(facts, output.Pair(k, all[k]))
	}
	for _, c := range e.Changes {
		serials = append(serials, c.Ref.Serial.String())
	}
	identity := e.Identity.String()
	if identity == "" {
		identity = "-"
	}
	return p.Row([]string{
		strconv.FormatInt(r.GetPosition().GetIndex(), 10), e.Time.Format(time.RFC3339), e.Actor.String(), string(e.Action), string(e.Outcome),
		identity, dash(serials), dash(facts),
	})
}

// entryJSON is an entry in the JSON output.
type entryJSON struct {
	Time     time.Time         `json:"time"`
	Actor    string            `json:"actor"`
	Action   translog.Action   `json:"action"`
	Outcome  translog.Outcome  `json:"outcome"`
	Identity string            `json:"identity"`
	Changes  []changeJSON      `json:"changes"`
	Facts    map[string]string `json:"facts"`
}

// changeJSON is a status change in the JSON output. Issuer, serial number and fingerprint are hexadecimal.
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

// printEntryJSON prints an entry with its position in the log.
func printEntryJSON(p *output.Printer, at *brevetv1.LogPosition, e translog.Entry) error {
	j := entryJSON{
		Time: e.Time, Actor: e.Actor.String(), Action: e.Action, Outcome: e.Outcome, Identity: e.Identity.String(),
		Changes: []changeJSON{}, Facts: e.Facts(),
	}
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
		Epoch string    `json:"epoch"`
		Index int64     `json:"index"`
		Entry entryJSON `json:"entry"`
	}{hex.EncodeToString(at.GetEpoch()), at.GetIndex(), j})
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
			p, err := output.New(cmd)
			if err != nil {
				return err
			}
			if archive != "" {
				return verifyArchive(p, archive)
			}
			return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				return verifyServer(ctx, p, brevetv1.NewLogServiceClient(conn))
			})
		},
	}
	output.Flag(cmd)
	cmd.Flags().StringVar(&archive, "archive", "", "file that contains the archive of the log")
	return cmd
}

func verifyArchive(p *output.Printer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var epochs translog.Epochs
	head, epoch, err := translog.ReadEpoch(f, epochs.Add)
	if err == nil {
		err = epochs.End(epoch)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return printHead(p, head, epoch.String(), &epochs, path)
}

// headRecord is the position of the last verified entry, as --output json prints it.
type headRecord struct {
	Epoch   string `json:"epoch"`
	Entries uint64 `json:"entries"`
	Chain   string `json:"chain"`

	Restores []restoreRecord `json:"restores,omitempty"`
}

// restoreRecord is an entry that begins an epoch of the log.
type restoreRecord struct {
	Entry          uint64 `json:"entry"`
	Epoch          string `json:"epoch"`
	PreviousEpoch  string `json:"previous_epoch"`
	WithoutArchive bool   `json:"without_archive,omitempty"`
}

func printHead(p *output.Printer, head translog.Head, epoch string, epochs *translog.Epochs, where string) error {
	record := headRecord{Epoch: epoch, Entries: head.Size, Chain: head.Chain.String()}
	text := fmt.Sprintf("%d entries in %s, without gap or change.\nThe last one chains to %s: keep it, and a later verification proves that nothing before it was rewritten.\nThe epoch of the log is %s.",
		head.Size, where, head.Chain, epoch)
	for _, r := range epochs.Restores {
		record.Restores = append(record.Restores, restoreRecord{r.Index, r.Epoch.String(), r.Previous.String(), r.WithoutArchive()})
		how := "with its archive"
		if r.WithoutArchive() {
			how = "without its archive, so what followed the entry before is lost"
		}
		text += fmt.Sprintf("\nThe log was restored at entry %d, %s: the epoch %s continues %s.", r.Index, how, r.Epoch, r.Previous)
	}
	return p.Sentence(record, text)
}

func verifyServer(ctx context.Context, p *output.Printer, c brevetv1.LogServiceClient) error {
	want, err := c.GetHead(ctx, &brevetv1.GetHeadRequest{})
	if err != nil {
		return err
	}
	stream, err := c.ListEntries(ctx, &brevetv1.ListEntriesRequest{
		Start: &brevetv1.LogPosition{Epoch: want.GetPosition().GetEpoch(), Index: 1}, Limit: want.GetPosition().GetIndex(),
	})
	if err != nil {
		return err
	}
	v := translog.NewVerifier(translog.Head{})
	var epochs translog.Epochs
	err = eachOf(stream.Recv, func(e *brevetv1.ListEntriesResponse) error {
		s := translog.Sequenced{Index: uint64(e.GetPosition().GetIndex()), Entry: e.GetEncoded()} //nolint:gosec // Add refuses a wrong index
		if len(e.GetChain()) != len(s.Chain) {
			return fmt.Errorf("entry %d has no chain value", e.GetPosition().GetIndex())
		}
		copy(s.Chain[:], e.GetChain())
		if err := v.Add(s); err != nil {
			return err
		}
		return epochs.Add(s)
	})
	if err != nil {
		return err
	}
	head := v.Head()
	if int64(head.Size) != want.GetPosition().GetIndex() || string(head.Chain[:]) != string(want.GetChain()) { //nolint:gosec // the size fits
		return fmt.Errorf("the log and its archive differ: the log ends at %d in %s, the archive at %d in %x: keep both, and find out who changed which",
			head.Size, head.Chain, want.GetPosition().GetIndex(), want.GetChain())
	}
	epoch, err := translog.EpochFromBytes(want.GetPosition().GetEpoch())
	if err == nil {
		err = epochs.End(epoch)
	}
	if err != nil {
		return err
	}
	return printHead(p, head, epoch.String(), &epochs, "the log and the archive")
}
