package ocspload

import (
	"strings"
	"testing"
)

func TestMissingWrkIsAnErrorThatSaysHowToInstallIt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if path, err := FindWrk(); err == nil || !strings.Contains(err.Error(), "apt-get install wrk") {
		t.Errorf("FindWrk() = %q, %v, want an error with the command that installs wrk", path, err)
	}
}
