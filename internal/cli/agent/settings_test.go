package agent

import (
	"flag"
	"strings"
	"testing"

	"github.com/brevet-pki/brevet/internal/config/configtest"
)

var update = flag.Bool("update", false, "write the reference of the configuration, where it is not current")

func TestReferenceIsCurrent(t *testing.T) {
	configtest.Reference(t, "The agent: agent.yaml", configtest.Keys(t, defaultSettings()), "", *update)
}

func TestExampleLoads(t *testing.T) {
	keys := configtest.Keys(t, defaultSettings())
	example := configtest.ReadExample(t, "brevet-agent.example.yaml", defaultSettings(), keys)
	if _, err := loadSettings(example.Path(), nil); err != nil {
		t.Error(err)
	}
	for _, k := range keys {
		_, err := loadSettings(example.Without(t, k.Path), nil)
		if k.Required != (err != nil) || err != nil && !strings.Contains(err.Error(), ": "+k.Path+": ") {
			t.Errorf("without %s, which is required: %v, the error is %v", k.Path, k.Required, err)
		}
	}
}
