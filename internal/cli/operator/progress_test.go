package operator

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestConfirm(t *testing.T) {
	for answer, want := range map[string]bool{
		"12\n": true, "12\r\n": true, "12": true, "": false, "\n": false, "y\n": false, "13\n": false, "012\n": false, strings.Repeat("1", 100): false,
	} {
		cmd := &cobra.Command{}
		var asked bytes.Buffer
		cmd.SetIn(strings.NewReader(answer))
		cmd.SetErr(&asked)
		err := confirm(cmd, 12, "revoke")
		if (err == nil) != want || err != nil && !strings.Contains(err.Error(), "nothing has changed") {
			t.Errorf("%q: %v", answer, err)
		}
		if !strings.Contains(asked.String(), "Type 12 to revoke") {
			t.Errorf("asked was %q", asked.String())
		}
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	bar := &progress{out: &out, where: "the records", bar: true}
	bar.at(0, 200)
	bar.at(100, 200)
	bar.at(200, 200)
	bar.end()
	want := "\r[" + strings.Repeat(".", 40) + "]   0 % of 200 in the records" +
		"\r[" + strings.Repeat("#", 20) + strings.Repeat(".", 20) + "]  50 % of 200 in the records" +
		"\r[" + strings.Repeat("#", 40) + "] 100 % of 200 in the records\n"
	if out.String() != want {
		t.Errorf("the bar is %q", out.String())
	}
	out.Reset()
	lines := newProgress(&out, "the records") // out is not a terminal
	lines.at(1, 3)
	lines.last = time.Now().Add(-time.Minute)
	lines.at(2, 3)
	lines.at(3, 3)
	lines.end()
	if out.String() != "2 of 3 are in the records\n" {
		t.Errorf("the lines are %q", out.String())
	}
	out.Reset()
	bar.at(0, 0) // a bulk revocation of no certificates
	if !strings.Contains(out.String(), "100 % of 0") {
		t.Errorf("the bar of nothing is %q", out.String())
	}
}
