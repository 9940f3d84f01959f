package node

import (
	"os"
	"strings"
	"testing"
)

func TestVolume(t *testing.T) {
	c := Config{StateDir: t.TempDir()}
	v := c.volume()
	if _, err := v.Free(); err == nil {
		t.Error("Free succeeds although the store does not exist")
	}
	for path, size := range map[string]int{c.StorePath(): 3, c.ArchivePath(): 2} {
		if err := os.WriteFile(path, []byte(strings.Repeat("x", size)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if free, err := v.Free(); err != nil || free < 1<<20 {
		t.Errorf("Free = %d bytes, %v", free, err)
	}
	if sizes := v.Sizes(); sizes["store"] != 3 || sizes["archive"] != 2 || sizes["wal"] != 0 || len(sizes) != 3 {
		t.Errorf("Sizes = %v", sizes)
	}
}

func TestTracesAreChecked(t *testing.T) {
	for endpoint, ok := range map[string]bool{
		"": true, "http://127.0.0.1:4317": true, "https://collector.example:4317": true,
		"127.0.0.1:4317": false, "grpc://127.0.0.1:4317": false, "http://127.0.0.1": false, "http://127.0.0.1:4318/v1/traces": false,
		"http://user:secret@127.0.0.1:4317": false,
	} {
		if err := (TracingConfig{Endpoint: endpoint, SampleRatio: 1}).checkEndpoint(); (err == nil) != ok {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
	for share, ok := range map[float64]bool{0: true, 0.01: true, 1: true, -0.1: false, 1.1: false} {
		if err := (TracingConfig{SampleRatio: share}).checkSampleRatio(); (err == nil) != ok {
			t.Errorf("%v: %v", share, err)
		}
	}
}
