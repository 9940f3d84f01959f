package operator

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

const (
	pollInterval     = 200 * time.Millisecond
	lineInterval     = 5 * time.Second // between two lines of progress if the output is not a terminal
	barWidth         = 40
	maxServerAbsence = 2 * time.Minute // how long the server may not respond, such as during a restart
)

// isTerminal reports whether a stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// confirm asks the user to type the number of certificates, and returns an error if the answer differs. The verb says what
// will be done with them.
func confirm(cmd *cobra.Command, n int64, verb string) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "Type %d to %s: ", n, verb)
	answer, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 64)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != fmt.Sprint(n) {
		return fmt.Errorf("nothing has changed, because the answer was not the number: run the command again to %s", verb)
	}
	return nil
}

// watch shows the progress of a bulk revocation until it is done, and then returns it.
func watch(ctx context.Context, cmd *cobra.Command, c brevetv1.RevocationServiceClient, b *brevetv1.BulkRevocation) (*brevetv1.BulkRevocation, error) {
	show := newProgress(cmd.ErrOrStderr(), "the records")
	defer show.end()
	for responded := time.Now(); !done(b); {
		show.at(b.GetApplied(), b.GetTotal())
		select {
		case <-ctx.Done():
			return nil, errors.New("interrupted")
		case <-time.After(pollInterval):
		}
		resp, err := c.GetBulkRevocation(ctx, &brevetv1.GetBulkRevocationRequest{Id: b.GetId()})
		switch {
		case err == nil:
			b, responded = resp.GetBulkRevocation(), time.Now()
		case ctx.Err() != nil: // the next iteration returns
		case !pki.IsTemporary(enroll.CallError("the server", err)) || time.Since(responded) > maxServerAbsence:
			return nil, err
		}
	}
	show.at(b.GetApplied(), b.GetTotal())
	return b, nil
}

// progress shows how many records a bulk revocation has changed, or how many tokens a batch has: as a bar on a terminal,
// otherwise as lines. It is safe for concurrent use.
type progress struct {
	mu    sync.Mutex
	out   io.Writer
	where string // what the records are in, such as "the records" or the name of a file
	bar   bool
	last  time.Time
	open  bool // whether the last line on the terminal is an unfinished bar
}

func newProgress(out io.Writer, where string) *progress {
	return &progress{out: out, where: where, bar: isTerminal(out), last: time.Now()}
}

func (p *progress) at(n, of int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	share := 1.0
	if of > 0 {
		share = min(1, float64(n)/float64(of))
	}
	switch {
	case p.bar:
		full := int(share * barWidth)
		fmt.Fprintf(p.out, "\r[%s%s] %3.0f %% of %d in %s", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), 100*share, of, p.where)
		p.open = true
	case time.Since(p.last) >= lineInterval:
		p.last = time.Now()
		fmt.Fprintf(p.out, "%d of %d are in %s\n", n, of, p.where)
	}
}

// silent says that the server does not respond, and that the command keeps trying.
func (p *progress) silent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLine()
	fmt.Fprintf(p.out, "the server does not answer, trying for %d minutes\n", int(maxServerAbsence.Minutes()))
}

func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLine()
}

func (p *progress) endLine() {
	if p.open {
		fmt.Fprintln(p.out)
	}
	p.open = false
}

func done(b *brevetv1.BulkRevocation) bool {
	return b.GetState() == brevetv1.BulkRevocationState_BULK_REVOCATION_STATE_DONE
}
