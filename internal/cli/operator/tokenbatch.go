package operator

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/internal/cli/output"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

const (
	maxBatch     = 100_000 // tokens
	batchWorkers = 16      // concurrent requests; the server processes half of them at a time
	batchWindow  = 256     // tokens that are created before their rows are written

	silenceNotice = 5 * time.Second // how long the command waits for a response before it prints a notice
)

// batchRecord is the result of a batch as --output json prints it.
type batchRecord struct {
	Tokens int    `json:"tokens"`
	Out    string `json:"out"`
}

// createTokens creates the tokens of a batch and writes them to a file, or continues an interrupted batch.
func createTokens(cmd *cobra.Command, p *output.Printer, template *brevetv1.CreateTokenRequest, n *newToken) error {
	identities, err := readIdentities(n.identities, cmd.InOrStdin())
	if err != nil {
		return err
	}
	total := len(identities)
	if identities == nil {
		total = int(n.count)
	}
	return client.Call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		options, err := batchOptions(cmd, template)
		if err != nil {
			return err
		}
		file, err := openTokenFile(n.out, options)
		if err != nil {
			return err
		}
		b := &batch{
			tokenFile: file, client: brevetv1.NewTokenServiceClient(conn), template: template, identities: identities,
			progress: newProgress(cmd.ErrOrStderr(), n.out),
		}
		err = b.run(ctx, total)
		b.progress.end()
		if err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "%d of %d tokens are in %s. To continue, repeat the command.\n", b.rows, total, n.out)
			_ = file.Close() // the rows that are not on disk are created again
			return err
		}
		if err := file.finish(); err != nil {
			return err
		}
		return p.Sentence(batchRecord{Tokens: b.rows, Out: n.out}, fmt.Sprintf("%d tokens in %s, each of which serves once.", b.rows, n.out))
	})
}

// batchOptions returns a hash of the operator and the options of a batch. Only the same operator, with the same options,
// can continue it.
func batchOptions(cmd *cobra.Command, template *brevetv1.CreateTokenRequest) (hash [sha256.Size]byte, err error) {
	target, err := client.FindTarget(cmd, false)
	if err != nil {
		return hash, err
	}
	pair, err := enroll.ReadPair(target.Directory)
	if err != nil {
		return hash, err
	}
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(template)
	return sha256.Sum256(append([]byte(pair.ID().String()+"\n"), content...)), err
}

// readIdentities reads the names of identities, one on each line. It returns nil without a file.
func readIdentities(path string, stdin io.Reader) ([]string, error) {
	in := stdin
	switch path {
	case "":
		return nil, nil
	case "-":
	default:
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	var all []string
	known := map[string]bool{}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		name := strings.TrimSpace(lines.Text())
		if name == "" {
			continue
		}
		if known[name] {
			return nil, cli.WrongUse(fmt.Sprintf("--identities: %.100q is there twice", name))
		}
		known[name] = true
		if all = append(all, name); len(all) > maxBatch {
			return nil, cli.WrongUse(fmt.Sprintf("--identities: give at most %d names", maxBatch))
		}
	}
	if lines.Err() != nil || len(all) == 0 {
		return nil, cli.WrongUse("--identities: give a file with the name of an identity on each line")
	}
	return all, nil
}

// batch creates tokens. The ID of each request depends on the ID of the batch, and on the identity or the number of the
// token. A repeated batch therefore replaces the tokens that were created but not written to the file.
type batch struct {
	*tokenFile
	client     brevetv1.TokenServiceClient
	template   *brevetv1.CreateTokenRequest
	identities []string // in the order of the tokens; nil for a pattern
	progress   *progress
	silence    sync.Once // guards the message that the server does not respond
}

// run creates the tokens that the file lacks. If it fails, the file has the tokens before the first that was refused.
func (b *batch) run(ctx context.Context, total int) error {
	if b.identities != nil && !slices.Equal(b.names, b.identities[:min(b.rows, total)]) {
		return cli.WrongUse(fmt.Sprintf("--identities: the first %d names are not those in the file: give the same ones", b.rows))
	}
	for b.rows < total {
		made := make([]*brevetv1.CreateTokenResponse, min(batchWindow, total-b.rows))
		var workers errgroup.Group
		var failed atomic.Bool // then no further requests are sent, and those in progress end
		errs := make([]error, len(made))
		workers.SetLimit(batchWorkers)
		for i := range made {
			if failed.Load() {
				break
			}
			workers.Go(func() error {
				if failed.Load() { // while this worker waited for a slot
					return nil
				}
				if made[i], errs[i] = b.create(ctx, b.rows+i); errs[i] != nil {
					failed.Store(true)
				}
				return nil
			})
		}
		_ = workers.Wait() // the errors are in errs
		first := slices.IndexFunc(errs, func(err error) bool { return err != nil })
		var err error
		if first >= 0 { // all requests before it were sent, so that the same one is reported each time
			err = errs[first]
		}
		if missing := slices.Index(made, nil); missing >= 0 {
			made = made[:missing]
		}
		if err := errors.Join(b.write(made, b.identities, b.template.GetPattern()), err); err != nil {
			return err
		}
		b.progress.at(int64(b.rows), int64(total))
	}
	return nil
}

// create creates the token with a number. It repeats the request while the server is overloaded or not available. If the
// server does not respond at all, create says once that it keeps trying.
func (b *batch) create(ctx context.Context, number int) (*brevetv1.CreateTokenResponse, error) {
	req, _ := proto.Clone(b.template).(*brevetv1.CreateTokenRequest)
	name := strconv.Itoa(number)
	if b.identities != nil {
		name = b.identities[number]
		req.Identity = name
	}
	id := sha256.Sum256(fmt.Appendf(nil, "brevet token batch\n%x\n%s", b.id, name))
	req.RequestId = id[:16]
	silent := time.AfterFunc(silenceNotice, func() { b.silence.Do(b.progress.silent) })
	defer silent.Stop()
	for start := time.Now(); ; {
		resp, err := b.client.CreateToken(ctx, req)
		if err == nil {
			return resp, nil
		}
		cause := enroll.CallError("the server", err)
		if !pki.IsTemporary(cause) || time.Since(start) > maxServerAbsence {
			return nil, err
		}
		if pki.RetryAfter(cause) > 0 { // the server responds that it is overloaded
			silent.Reset(silenceNotice)
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(max(pki.RetryAfter(cause), pollInterval)):
		}
	}
}
