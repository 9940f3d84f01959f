package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// benchPatience bounds the start and the end of a measured server. One whose store was filled brings its archive up to
// date first.
const benchPatience = 30 * time.Minute

// benchServer is a development CA in a process of its own.
type benchServer struct {
	dev   dev
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // of the process; after ended
}

// benchDev is a development CA in a directory, on addresses that nobody listens on. They are in its certificates.
func benchDev(ctx context.Context, dir string) (dev, error) {
	addresses, err := freeAddresses(ctx, 2)
	if err != nil {
		return dev{}, err
	}
	return dev{dir: dir, grpc: addresses[0], http: addresses[1]}, nil
}

// startBenchServer runs this binary as the server of a development CA, and waits until it serves. The server ends with
// the context, or by stop. The options are further ones of dev. What it logs goes to log.
func startBenchServer(ctx context.Context, d dev, log io.Writer, options ...string) (*benchServer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &benchServer{dev: d, ended: make(chan struct{})}
	s.cmd = exec.CommandContext(ctx, self, append([]string{"dev", "--dir", d.dir, "--grpc", d.grpc, "--http", d.http}, options...)...)
	s.cmd.Args[0] = os.Args[0]
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.WaitDelay = benchPatience
	s.cmd.Stderr = log
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
		return nil, errors.Join(errors.New("the server to measure does not start"), s.err)
	case <-time.After(benchPatience):
		return nil, errors.Join(errors.New("the server to measure does not come up"), s.stop())
	}
}

// follow reads what the server prints, which says first that it is up, and waits for its end.
func (s *benchServer) follow(out io.Reader, up chan<- struct{}) {
	lines := bufio.NewScanner(out)
	if lines.Scan() {
		close(up)
	}
	_, _ = io.Copy(io.Discard, out) // until it is closed
	s.err = s.cmd.Wait()
	close(s.ended)
}

// stop has the server finish. It may have ended by itself, which is an error here.
func (s *benchServer) stop() error {
	select {
	case <-s.ended:
		if errors.Is(s.err, context.Canceled) { // it was told to, and did
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
		if errors.Is(s.err, context.Canceled) {
			return nil
		}
		return s.err
	case <-time.After(benchPatience):
		return errors.Join(errors.New("the measured server does not stop, and is killed"), s.cmd.Process.Kill())
	}
}

// residentMiB is the server's resident memory now (proc(5), VmRSS).
func (s *benchServer) residentMiB() (float64, error) {
	return statusMiB(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid), "VmRSS:")
}

// statusMiB reads a size in kB from what the kernel says of a process.
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

// clockTicks are those of a second in proc(5): USER_HZ, which is 100 on every architecture that Go runs on.
const clockTicks = 100

// cpu is the processor time that the server has used so far.
func (s *benchServer) cpu() (time.Duration, error) { return cpuOf(s.cmd.Process) }

// cpuOf is the processor time that a process has used so far (proc(5), utime and stime), to a hundredth of a second.
func cpuOf(p *os.Process) (time.Duration, error) {
	path := fmt.Sprintf("/proc/%d/stat", p.Pid)
	stat, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("processor time was not measured: %w", err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from the third on: a name may have spaces
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

// stored is what the server keeps about certificates, in octets: store, its write-ahead log, and the log's archive.
func (s *benchServer) stored() (float64, error) {
	c := Config{Directory: s.dev.dir}
	var total int64
	for _, path := range []string{c.storePath(), c.storePath() + "-wal", c.archivePath()} {
		info, err := os.Stat(path)
		if err != nil {
			return 0, fmt.Errorf("bytes_per_certificate was not measured: %w", err)
		}
		total += info.Size()
	}
	return float64(total), nil
}

// freeAddresses are loopback addresses that nobody listens on. They have to be known beforehand: certificates contain them.
func freeAddresses(ctx context.Context, n int) ([]string, error) {
	var addresses []string
	var listeners []net.Listener // closed after all are known, so that they differ
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	for range n {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}
