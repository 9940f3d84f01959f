package fleet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/internal/bench/testbed"
	"github.com/brevet-pki/brevet/internal/cli"
)

// MaxAgents is the maximum number of agents of a fleet.
const MaxAgents = 1_000_000

const (
	// filesBeside is the number of files that such a process needs beside the locks of the credential directories.
	filesBeside = 3000
	// progressInterval is the interval of messages about the progress.
	progressInterval = 30 * time.Second
)

// Processes are the processes of a fleet's agents. Each has its share, because a process can open only so many
// files.
type Processes struct {
	all    []*process
	events chan Event
}

type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
}

// Start starts processes with all agents of o, and waits until they are ready.
func Start(ctx context.Context, b *testbed.Testbed, o Options) (p *Processes, err error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	share := min(o.Agents, int(min(limit.Max, MaxAgents))-filesBeside)
	if share < 1 {
		return nil, cli.WrongUse(fmt.Sprintf("a process may open only %d files: raise it with ulimit -n", limit.Max))
	}
	p = &Processes{events: make(chan Event, 1024)}
	for first := 0; first < o.Agents; first += share {
		one, err := startProcess(ctx, b, Options{Dir: o.Dir, First: first, Agents: min(share, o.Agents-first), Lifetime: o.Lifetime})
		if err != nil {
			return nil, errors.Join(err, p.Stop())
		}
		p.all = append(p.all, one)
	}
	for _, one := range p.all {
		if err := one.ready(); err != nil {
			return nil, errors.Join(err, p.Stop())
		}
	}
	return p, nil
}

func startProcess(ctx context.Context, b *testbed.Testbed, o Options) (p *process, err error) {
	p = &process{}
	p.cmd, err = b.Process(ctx, "agents", "--directory", o.Dir, "--first", strconv.Itoa(o.First), "--agents", strconv.Itoa(o.Agents), "--lifetime", o.Lifetime.String())
	if err != nil {
		return nil, err
	}
	p.cmd.Stdin = nil // it needs no PIN
	p.cmd.Stderr = b.Log
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.lines = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	return p, nil
}

// ready waits until the process has made its agents.
func (p *process) ready() error {
	if !p.lines.Scan() || p.lines.Text() != LineReady {
		return errors.Join(errors.New("a process of agents ended during its start"), p.lines.Err())
	}
	return nil
}

// Stop ends the processes before they have run.
func (p *Processes) Stop() error {
	var err error
	for _, one := range p.all {
		err = errors.Join(err, one.cmd.Cancel())
		_ = one.cmd.Wait() // its error is that it was stopped
	}
	return err
}

// Run lets all agents begin, and ends them when each overdue device has a new certificate. It returns the events, and
// what all agents did. It gives up after a time.
func (p *Processes) Run(
	ctx context.Context, devices map[int]Device, begin time.Time, limit time.Duration, logf func(string, ...any),
) (events []Event, total Report, err error) {
	group, ctx := errgroup.WithContext(ctx)
	reports := make([]Report, len(p.all))
	for i, one := range p.all {
		if _, err := fmt.Fprintln(one.in, LineBegin); err != nil {
			return nil, total, errors.Join(err, p.Stop())
		}
		group.Go(func() (err error) {
			reports[i], err = Follow(one.lines, p.events)
			return errors.Join(err, one.cmd.Wait())
		})
	}
	events, late := p.wait(ctx, devices, begin, limit, logf)
	for _, one := range p.all {
		_, err = fmt.Fprintln(one.in, LineEnd)
		late = errors.Join(late, err, one.in.Close())
	}
	done := make(chan error, 1)
	go func() { done <- group.Wait() }()
	for {
		select {
		case e := <-p.events: // after the last overdue device
			events = append(events, e)
			continue
		case err = <-done:
		}
		break
	}
	for _, r := range reports {
		total = total.Plus(r)
	}
	if late != nil && total.Error != "" {
		late = fmt.Errorf("%w; the last error of an agent: %s", late, total.Error)
	}
	return events, total, errors.Join(late, err)
}

// wait reads events until each overdue device has a certificate.
func (p *Processes) wait(
	ctx context.Context, devices map[int]Device, begin time.Time, limit time.Duration, logf func(string, ...any),
) (events []Event, err error) {
	waiting := map[int]bool{}
	for n, d := range devices {
		if d.Overdue(begin) {
			waiting[n] = true
		}
	}
	overdue := len(waiting)
	progress := time.NewTicker(progressInterval)
	defer progress.Stop()
	end := time.NewTimer(limit)
	defer end.Stop()
	for len(waiting) > 0 {
		select {
		case <-ctx.Done():
			return events, context.Cause(ctx)
		case <-end.C:
			return events, fmt.Errorf("%d of %d overdue agents have no new certificate after %s", len(waiting), overdue, limit.Round(time.Second))
		case <-progress.C:
			logf("%d of %d overdue agents have a new certificate after %.0f s", overdue-len(waiting), overdue, time.Since(begin).Seconds())
		case e := <-p.events:
			if events = append(events, e); e.Issued {
				delete(waiting, e.Device)
			}
		}
	}
	return events, nil
}
