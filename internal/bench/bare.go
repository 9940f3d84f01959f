package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/server"
)

// The header fields of the bare handler's responses. Their values are as long as those of the OCSP responder.
var (
	bareType     = []string{"application/ocsp-response"}
	bareCache    = []string{"public, max-age=60, no-transform, must-revalidate"}
	bareExpires  = []string{"Tue, 24 Nov 2026 18:43:07 GMT"}
	bareModified = []string{"Tue, 24 Nov 2026 18:38:07 GMT"}
	bareTag      = []string{`"00112233445566778899aabbccddeeff"`}
)

// bareHandler returns a handler that responds to every request with the same size bytes.
func bareHandler(size int) http.Handler {
	body := string(bytes.Repeat([]byte{'.'}, size))
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		header := w.Header()
		header["Content-Type"] = bareType
		if q.Method == http.MethodGet {
			header["Cache-Control"], header["Expires"], header["Last-Modified"], header["Etag"] = bareCache, bareExpires, bareModified, bareTag
		}
		_, _ = io.WriteString(w, body)
	})
}

// newBare returns the hidden command that serves the bare handler for brevet-bench ocsp.
func newBare() *cobra.Command {
	size := 0
	cmd := &cobra.Command{
		Use: "bare", Short: "Serve bytes over HTTP, for bench ocsp to compare with", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			var lc net.ListenConfig
			l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			node.BoundGarbage(ctx)
			public := server.PublicHTTP(bareHandler(size))
			go func() { <-ctx.Done(); _ = public.Close() }()
			fmt.Fprintln(cmd.OutOrStdout(), l.Addr())
			if err := public.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&size, "size", 0, "bytes of a response")
	return cmd
}

// newSigning returns the hidden command that measures for brevet-bench ocsp how fast a delegate's key signs.
func newSigning() *cobra.Command {
	var d time.Duration
	cmd := &cobra.Command{
		Use: "signing", Short: "Sign as an OCSP delegate does, for bench ocsp to compare with", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				return err
			}
			made, errs := make([]int, runtime.GOMAXPROCS(0)), make([]error, runtime.GOMAXPROCS(0))
			var all sync.WaitGroup
			begin := time.Now()
			for i := range made {
				all.Go(func() {
					for errs[i] == nil && time.Since(begin) < d {
						_, errs[i] = crypto.SignMessage(key, rand.Reader, []byte(signedText), crypto.SHA256)
						made[i]++
					}
				})
			}
			all.Wait()
			took, n := time.Since(begin), 0
			for _, m := range made {
				n += m
			}
			fmt.Fprintln(cmd.OutOrStdout(), decimal(float64(n)/took.Seconds()))
			return errors.Join(errs...)
		},
	}
	cmd.Flags().DurationVar(&d, "duration", time.Second, "how long to sign")
	return cmd
}

// delegateRate runs a process that only signs, on all cores, for d. It returns the signatures per second, and the
// microseconds of processor time per signature.
func (b *bench) delegateRate(ctx context.Context, d time.Duration) (rate, cpu float64, err error) {
	cmd, err := b.Process(ctx, "signing", "--duration", d.String())
	if err != nil {
		return 0, 0, err
	}
	out, err := cmd.Output()
	if err != nil {
		return 0, 0, fmt.Errorf("signing: %w", err)
	}
	rate, err = strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	return rate, micros(cpuOfEnded(cmd)) / (rate * d.Seconds()), err
}

// cpuOfEnded returns the processor time that a process used. The process must have ended.
func cpuOfEnded(cmd *exec.Cmd) time.Duration {
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// bareServer is a process of brevet-bench that serves something to compare with.
type bareServer struct {
	cmd     *exec.Cmd
	address string
}

// startBareServer starts a command that prints the address that it serves on its first line.
func (b *bench) startBareServer(ctx context.Context, args ...string) (*bareServer, error) {
	cmd, err := b.Process(ctx, args...)
	if err != nil {
		return nil, err
	}
	s := &bareServer{cmd: cmd}
	s.cmd.Stderr = b.Log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start brevet-bench %s: %w", args[0], err), s.stop())
	}
	s.address = strings.TrimSpace(line)
	return s, nil
}

// stop kills the process, which has nothing to finish.
func (s *bareServer) stop() error {
	err := s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
