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

// What the bare handler says of its answers: the header fields of real ones, and values of their lengths.
var (
	bareType     = []string{"application/ocsp-response"}
	bareCache    = []string{"public, max-age=60, no-transform, must-revalidate"}
	bareExpires  = []string{"Tue, 24 Nov 2026 18:43:07 GMT"}
	bareModified = []string{"Tue, 24 Nov 2026 18:38:07 GMT"}
	bareTag      = []string{`"00112233445566778899aabbccddeeff"`}
)

// bareHandler answers with the same bytes, whatever it is asked.
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

// newBare is what brevet-bench ocsp runs beside the server.
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
	cmd.Flags().IntVar(&size, "size", 0, "bytes of an answer")
	return cmd
}

// newSigning is what brevet-bench ocsp runs to learn how fast a delegate signs.
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

// delegateRate is how many signatures a second a process makes that does nothing else, on all cores, and the microseconds
// of processor time that one takes.
func (b *bench) delegateRate(ctx context.Context, d time.Duration) (rate, cpu float64, err error) {
	cmd, err := b.process(ctx, "signing", "--duration", d.String())
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

// cpuOfEnded is the processor time that a process has used which has ended.
func cpuOfEnded(cmd *exec.Cmd) time.Duration {
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// bareServer is a process with the bare handler.
type bareServer struct {
	cmd     *exec.Cmd
	address string
}

func (b *bench) startBareServer(ctx context.Context, size int) (*bareServer, error) {
	cmd, err := b.process(ctx, "bare", "--size", strconv.Itoa(size))
	if err != nil {
		return nil, err
	}
	s := &bareServer{cmd: cmd}
	s.cmd.Stderr = b.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("what the server is compared with does not start: %w", err), s.stop())
	}
	s.address = strings.TrimSpace(line)
	return s, nil
}

// stop ends it. It has nothing to finish, and how it ends says nothing.
func (s *bareServer) stop() error {
	err := s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
