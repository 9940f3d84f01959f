package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/bench/fill"
	"github.com/brevet-pki/brevet/internal/bench/pace"
	"github.com/brevet-pki/brevet/internal/cli/devca"
	"github.com/brevet-pki/brevet/internal/cli/node"
	"github.com/brevet-pki/brevet/internal/service"
	"github.com/brevet-pki/brevet/ra/policy"
	"github.com/brevet-pki/brevet/server"
)

// processTimeout limits how long a measured server takes to start and to stop. If its store was filled, the server
// first archives the log.
const processTimeout = 30 * time.Minute

// serverProcess is a development CA in another process.
type serverProcess struct {
	dev   devca.CA
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // how the process ended; set before ended is closed
}

// newServer returns the hidden command that runs the measured server: a development CA with its issuing key in the
// measured HSM.
func newServer() *cobra.Command {
	var d devca.CA
	var slow pace.Pace
	var config string
	var challengePort int
	cmd := &cobra.Command{
		Use: "server", Short: "Run the measured server; it reads the HSM's PIN from standard input", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pin, err := hsm.ReceivePIN(cmd.InOrStdin())
			if err != nil {
				return err
			}
			like, err := readBenchConfig(config)
			if err != nil {
				return err
			}
			c, err := d.Config()
			if err != nil {
				return err
			}
			c.HSM, c.CRL.Partitions = like.HSM, like.CRL.Partitions
			if challengePort > 0 {
				c.ACME.Networks, c.ACME.HTTPPort = []string{"127.0.0.0/8"}, challengePort
			}
			if c.Policy, err = measuredPolicy(d.Dir, like.Policy); err != nil {
				return err
			}
			if err := c.Check(); err != nil {
				return err
			}
			return node.Stopped(cmd.Context(), serveMeasured(cmd, d, c, pin, slow))
		},
	}
	d.Flags(cmd)
	paceFlags(cmd, &slow)
	f := cmd.Flags()
	f.StringVar(&d.KeyLabel, "key-label", "", "label of the issuing key")
	f.StringVar(&config, "config", "", "configuration with the HSM")
	f.IntVar(&challengePort, "acme-http-port", 0, "port of http-01 challenges, on loopback (default: none)")
	return cmd
}

// measuredPolicy writes the first policy of a measured server to a directory, and returns its path. The policy has the
// default rules, and the profiles of the policy in the file from. The path is empty if there are none.
func measuredPolicy(dir, from string) (string, error) {
	if from == "" {
		return "", nil
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return "", fmt.Errorf("policy: %w", err)
	}
	var document struct {
		Profiles yaml.Node `yaml:"profiles"`
	}
	if err := yaml.Unmarshal(text, &document); err != nil {
		return "", fmt.Errorf("policy: %w", err)
	}
	if document.Profiles.IsZero() {
		return "", nil
	}
	profiles, err := yaml.Marshal(map[string]*yaml.Node{"profiles": &document.Profiles})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "policy.yaml")
	return path, os.WriteFile(path, append(profiles, policy.Default()...), 0o600)
}

// serveMeasured runs the server of a development CA whose issuing keys sign at a pace.
func serveMeasured(cmd *cobra.Command, d devca.CA, c node.Config, pin hsm.PIN, slow pace.Pace) (err error) {
	ctx := cmd.Context()
	log := service.NewLog(cmd.ErrOrStderr(), c.Log.Format, c.Log.Level)
	defer log.Close()
	n, err := d.Open(ctx, c, pin, log.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	listeners, err := c.OpenListeners(ctx)
	if err != nil {
		return err
	}
	parts, err := n.ServerConfig(ctx, listeners)
	if err != nil {
		return errors.Join(err, listeners.Close())
	}
	for i := range parts.Issuers {
		parts.Issuers[i].Signer = slow.Signer(parts.Issuers[i].Signer)
	}
	node.BoundGarbage(ctx)
	s, err := server.New(ctx, parts)
	if err != nil {
		return errors.Join(err, listeners.Close())
	}
	return d.Serve(cmd, s)
}

// newDev makes a development CA below the directory, on free addresses, which its certificates contain. The root's key
// is dropped when the certificates are made.
func (b *bench) newDev(ctx context.Context, name string) (devca.CA, error) {
	addresses, err := devca.FreeAddresses(ctx, 3)
	if err != nil {
		return devca.CA{}, err
	}
	d := devca.CA{Dir: filepath.Join(b.dir, name), TrustDomain: devca.DefaultTrustDomain, GRPC: addresses[0], HTTP: addresses[1], HTTPS: addresses[2], KeyLabel: b.key.Label()}
	if err := node.MakeDirectory(d.CeremonyDir()); err != nil {
		return d, err
	}
	root, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return d, err
	}
	return d, d.Certify(d.CeremonyDir(), root, b.key)
}

// startServer starts the server of a development CA, and waits until it serves. The server ends with ctx or by stop. It
// logs to the standard error of the measurement.
func (b *bench) startServer(ctx context.Context, d devca.CA, options ...string) (*serverProcess, error) {
	args := append([]string{"server", "--directory", d.Dir, "--grpc", d.GRPC, "--http", d.HTTP, "--https", d.HTTPS, "--key-label", d.KeyLabel, "--config", b.config}, options...)
	s := &serverProcess{dev: d, ended: make(chan struct{})}
	var err error
	if s.cmd, err = b.process(ctx, args...); err != nil {
		return nil, err
	}
	s.cmd.Stderr = b.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	up := make(chan struct{})
	go s.follow(out, up)
	select {
	case <-up:
		return s, nil
	case <-s.ended:
		return nil, errors.Join(errors.New("the server to measure ended during its start"), s.err)
	case <-time.After(processTimeout):
		return nil, errors.Join(errors.New("the server to measure did not start in time"), s.stop())
	}
}

// fillStore fills the store of a CA that has not run yet. It starts and stops a server first, which makes the store.
func (b *bench) fillStore(ctx context.Context, d devca.CA, f fill.Spec) error {
	first, err := b.startServer(ctx, d)
	if err != nil {
		return err
	}
	if err := first.stop(); err != nil {
		return err
	}
	b.logf("filling its store with %d certificates", f.Certificates)
	err = fill.Certificates(ctx, d, f, b.logf)
	unix.Sync() // else the kernel writes the store to the disk during the measurement, and commits wait for it
	return err
}

// follow closes up when the server prints its first line, which it does when it serves. It then waits for the server's
// end.
func (s *serverProcess) follow(out io.Reader, up chan<- struct{}) {
	lines := bufio.NewScanner(out)
	if lines.Scan() {
		close(up)
	}
	_, _ = io.Copy(io.Discard, out) // until the server closes it
	s.err = s.cmd.Wait()
	close(s.ended)
}

// stop stops the server, and waits for its end. If the server ended before without being stopped, stop returns an
// error.
func (s *serverProcess) stop() error {
	select {
	case <-s.ended:
		if errors.Is(s.err, context.Canceled) { // the context ended, and stopped it
			return nil
		}
		return errors.Join(errors.New("the measured server ended by itself"), s.err)
	default:
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.ended:
		if s.err == nil || errors.Is(s.err, context.Canceled) {
			return nil
		}
		return fmt.Errorf("the measured server failed when it stopped, its log has the cause: %w", s.err)
	case <-time.After(processTimeout):
		return errors.Join(errors.New("the measured server did not stop in time and was killed"), s.cmd.Process.Kill())
	}
}

// residentMiB returns the server's current resident memory (proc(5), VmRSS).
func (s *serverProcess) residentMiB() (float64, error) {
	return statusMiB(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid), "VmRSS:")
}

// statusMiB reads a size in kB from a status file of a process (proc(5)), and returns it in MiB.
func statusMiB(path, field string) (float64, error) {
	status, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("memory was not measured: %w", err)
	}
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte(field)); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(string(value)), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("memory was not measured: %s has no %s", path, field)
}

// clockTicks is the number of clock ticks per second in proc(5): USER_HZ, which is 100 on every architecture that Go
// supports.
const clockTicks = 100

// cpu returns the processor time that the server has used so far.
func (s *serverProcess) cpu() (time.Duration, error) { return cpuOf(s.cmd.Process) }

// cpuOf returns the processor time that a process has used so far (proc(5), utime and stime), to a hundredth of a
// second.
func cpuOf(p *os.Process) (time.Duration, error) {
	path := fmt.Sprintf("/proc/%d/stat", p.Pid)
	stat, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("processor time was not measured: %w", err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from field 3 on; field 2, the name, may contain spaces
	if len(fields) < 13 {
		return 0, fmt.Errorf("processor time was not measured: %s has %d fields", path, len(fields))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * time.Second / clockTicks, err
}

// stored returns the total size in bytes of the store, its write-ahead log, and the archive of the log.
func (s *serverProcess) stored() (float64, error) {
	c := node.Config{StateDir: s.dev.Dir}
	var total int64
	for _, path := range []string{c.StorePath(), c.StorePath() + "-wal", c.ArchivePath()} {
		info, err := os.Stat(path)
		if err != nil {
			return 0, fmt.Errorf("bytes_per_certificate was not measured: %w", err)
		}
		total += info.Size()
	}
	return float64(total), nil
}
