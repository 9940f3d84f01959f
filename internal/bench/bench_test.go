package bench

import (
	"bytes"
	"math"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/brevet-pki/brevet/internal/cli/output"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{7}, spread{7, 7, 7}},
		{[]float64{3, 1, 2}, spread{1, 2, 3}},
		{[]float64{4, 1, 2, 3}, spread{1, 2.5, 4}},
		{[]float64{123456, 0.000123456}, spread{0.0001235, 61728, 123456}},
	} {
		if got, err := spreadOf("x", c.values); err != nil || got != c.want {
			t.Errorf("spreadOf(%v) = %v, %v, want %v", c.values, got, err, c.want)
		}
	}
	for _, values := range [][]float64{nil, {1, 0}, {1, -1}, {math.NaN()}, {math.Inf(1)}} {
		if got, err := spreadOf("x", values); err == nil {
			t.Errorf("spreadOf(%v) = %v, want an error, because a value was not measured", values, got)
		}
	}
}

func TestSignedTextIsNotDER(t *testing.T) {
	if signedText[0] == 0x30 || signedText[len(signedText)-1] != 0 {
		t.Error("the signed text begins as DER does, or does not end with a zero byte")
	}
}

func TestQuantile(t *testing.T) {
	var l load
	if !math.IsNaN(l.quantile(0.5)) {
		t.Error("the quantile without RPCs is not NaN")
	}
	for ms := range 200 {
		l.latencies = append(l.latencies, time.Duration(ms+1)*time.Millisecond)
	}
	for share, want := range map[float64]float64{0.5: 100, 0.99: 198, 1: 200} {
		if got := l.quantile(share); got != want {
			t.Errorf("quantile(%v) = %v, want %v", share, got, want)
		}
	}
}

// A report is one object, with the spread of each field. If a field was not measured, report prints nothing.
func TestReport(t *testing.T) {
	var out bytes.Buffer
	cmd := &cobra.Command{}
	output.Flag(cmd)
	cmd.SetOut(&out)
	if err := cmd.ParseFlags([]string{"--output", "json"}); err != nil {
		t.Fatal(err)
	}
	p, err := output.New(cmd)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Printer: p}
	measured := rounds{}
	for _, v := range []float64{3, 1, 2} {
		measured.add(map[string]float64{"a": v, "b": v / 10})
	}
	if err := b.report(map[string]any{"rounds": 3}, measured, []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	want := `{"a":2,"b":0.2,"rounds":3,"spread":{"a":{"min":1,"median":2,"max":3},"b":{"min":0.1,"median":0.2,"max":0.3}}}` + "\n"
	if out.String() != want {
		t.Errorf("%s\nwant %s", &out, want)
	}
	out.Reset()
	measured.add(map[string]float64{"b": 0})
	for _, fields := range [][]string{{"a", "b"}, {"a", "c"}} {
		if err := b.report(map[string]any{}, measured, fields); err == nil || out.Len() > 0 {
			t.Errorf("report of the fields %q: error %v, output %q, want an error and no output", fields, err, &out)
		}
	}
}
