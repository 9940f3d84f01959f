package operator

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

const (
	askEvery   = 200 * time.Millisecond // how far a set has come
	lineEvery  = 5 * time.Second        // where progress is lines, and not a bar
	barWidth   = 40
	awayAtMost = 2 * time.Minute // how long a server may not answer, such as one that starts again
)

// isTerminal reports whether a stream is a person's.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// confirm asks the person at the terminal.
func confirm(cmd *cobra.Command, n int64) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "Type %d to revoke: ", n)
	answer, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 64)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != fmt.Sprint(n) {
		return errors.New("nothing is revoked: the answer was not the number; run it again to revoke")
	}
	return nil
}

// followSet shows how the records of a set follow until they all have, and prints the set.
func followSet(ctx context.Context, cmd *cobra.Command, p *output.Printer, c brevetv1.RevocationServiceClient, set *brevetv1.BulkRevocation) error {
	show := newProgress(cmd.ErrOrStderr())
	for answered := time.Now(); !done(set); {
		show.at(set.GetApplied(), set.GetTotal())
		select {
		case <-ctx.Done():
			show.end()
			return errors.New("interrupted")
		case <-time.After(askEvery):
		}
		resp, err := c.GetBulkRevocation(ctx, &brevetv1.GetBulkRevocationRequest{Id: set.GetId()})
		switch {
		case err == nil:
			set, answered = resp.GetBulkRevocation(), time.Now()
		case ctx.Err() != nil: // said above
		case !pki.IsTemporary(enroll.CallError("the server", err)) || time.Since(answered) > awayAtMost:
			show.end()
			return err
		}
	}
	show.at(set.GetApplied(), set.GetTotal())
	show.end()
	return printSet(p, set)
}

// progress is a bar on a terminal, and lines elsewhere.
type progress struct {
	out  io.Writer
	bar  bool
	last time.Time
	open bool // a bar is on the terminal's last line
}

func newProgress(out io.Writer) *progress {
	return &progress{out: out, bar: isTerminal(out), last: time.Now()}
}

func (p *progress) at(n, of int64) {
	share := 1.0
	if of > 0 {
		share = min(1, float64(n)/float64(of))
	}
	switch {
	case p.bar:
		full := int(share * barWidth)
		fmt.Fprintf(p.out, "\r[%s%s] %3.0f %% of %d in the records", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), 100*share, of)
		p.open = true
	case time.Since(p.last) >= lineEvery:
		p.last = time.Now()
		fmt.Fprintf(p.out, "%d of %d are in the records\n", n, of)
	}
}

func (p *progress) end() {
	if p.open {
		fmt.Fprintln(p.out)
	}
	p.open = false
}

func done(b *brevetv1.BulkRevocation) bool {
	return b.GetState() == brevetv1.BulkRevocationState_BULK_REVOCATION_STATE_DONE
}
