package ocspload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/brevet-pki/brevet/internal/bench/testbed"
)

const (
	// Connections is the number of connections of wrk.
	Connections = 64
	// MinRound is the minimum duration of a run of wrk, which must be whole seconds.
	MinRound   = time.Second
	wrkTimeout = 5 * time.Second // for one response
	// wrkMargin is how much the mean size of a response under load may differ from that without load, as a share. An
	// OCSP error response has five bytes, so even few of them are noticed. They are fast, and would raise the measured
	// rate.
	wrkMargin = 0.01
)

// FindWrk returns the path of wrk, the program that sends the load.
func FindWrk() (string, error) {
	path, err := exec.LookPath("wrk")
	if err != nil {
		return "", errors.New("wrk, which sends the load, is not on the PATH: install it (Debian: apt-get install wrk), or run deploy/setup.sh --test")
	}
	return path, nil
}

// Result is the result of one run of wrk.
type Result struct {
	Rate     float64 // responses per second
	P50, P99 float64 // milliseconds
	// Processor time of a response in microseconds. If other programs use the machine, it is a better measure than the
	// rate.
	ServerCPU, LoadCPU float64
}

// Send sends the requests to a process for d with wrk, whose path [FindWrk] returns. If the mean size of a response is not
// wantSize, some responses are errors, and Send returns an error. If wantSize is 0, it accepts any size.
func (w *Requests) Send(ctx context.Context, wrk, address string, process *os.Process, wantSize float64, d time.Duration) (Result, error) {
	cmd := exec.CommandContext(ctx, wrk, "--threads", "1", "--connections", strconv.Itoa(Connections),
		"--duration", strconv.Itoa(int(d/time.Second))+"s", "--timeout", strconv.Itoa(int(wrkTimeout/time.Second))+"s",
		"--script", w.Script, "http://"+address, w.File)
	testbed.EndWithParent(cmd)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	before, err := testbed.CPUOf(process)
	if err != nil {
		return Result{}, err
	}
	if err := cmd.Run(); err != nil {
		return Result{}, fmt.Errorf("wrk: %w: %s", err, output.Bytes())
	}
	after, err := testbed.CPUOf(process)
	if err != nil {
		return Result{}, err
	}
	var result struct {
		Responses float64 `json:"answers"`
		Octets    float64 `json:"octets"`
		Took      float64 `json:"took_us"`
		Failed    int     `json:"failed"`
		P50       float64 `json:"p50_us"`
		P99       float64 `json:"p99_us"`
	}
	lines := bytes.Split(bytes.TrimSpace(output.Bytes()), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], &result); err != nil {
		return Result{}, fmt.Errorf("read the result of wrk: %w: %s", err, output.Bytes())
	}
	if result.Failed > 0 {
		return Result{}, fmt.Errorf("%d of %.0f requests by %s failed: %s", result.Failed, result.Responses, w.Name, output.Bytes())
	}
	if got := result.Octets / result.Responses; wantSize > 0 && !(math.Abs(got-wantSize) < wrkMargin*wantSize) {
		return Result{}, fmt.Errorf("responses by %s have %.0f bytes under load and %.0f without: some are OCSP errors", w.Name, got, wantSize)
	}
	return Result{
		Rate: result.Responses / result.Took * 1e6, P50: result.P50 / 1000, P99: result.P99 / 1000,
		ServerCPU: micros(after-before) / result.Responses,
		LoadCPU:   micros(cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()) / result.Responses,
	}, nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
