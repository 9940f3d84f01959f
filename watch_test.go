package brevet_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/server"
	"github.com/brevet-pki/brevet/server/servertest"
	"github.com/brevet-pki/brevet/store/sqlite"
	"github.com/brevet-pki/brevet/store/tables"
)

// The files for monitoring a server: alert rules and their tests, and a dashboard. The last constant is the heading of
// the runbook.
const (
	rulesFile     = "deploy/prometheus/brevet.rules.yaml"
	rulesTestFile = "deploy/prometheus/brevet.test.yaml"
	dashboardFile = "deploy/grafana/brevet.json"
	alertsHeading = "\n## What each alert means, and what to do\n"
)

// A rule is an alert rule.
type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func alertRules(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal([]byte(read(t, rulesFile)), &file); err != nil {
		t.Fatal(err)
	}
	var rules []rule
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	if len(rules) < 10 {
		t.Fatalf("%s has %d rules", rulesFile, len(rules))
	}
	return rules
}

// A dashboard is the part of Grafana's dashboard model that the tests check.
type dashboard struct {
	SchemaVersion int    `json:"schemaVersion"`
	UID           string `json:"uid"`
	Title         string `json:"title"`
	ID            *int   `json:"id"`
	Templating    struct {
		List []struct {
			Name, Type, Query any
		} `json:"list"`
	} `json:"templating"`
	Panels []struct {
		ID         int `json:"id"`
		Type       string
		Title      string
		Datasource *struct{ UID string } `json:"datasource"`
		GridPos    struct{ X, Y, W, H int }
		Targets    []struct {
			Expr       string
			RefID      string `json:"refId"`
			Datasource struct{ UID string }
		}
	} `json:"panels"`
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(read(t, dashboardFile)), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// expressions returns the dashboard's Prometheus expressions, with values in place of Grafana's variables.
func (d dashboard) expressions() []string {
	var found []string
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			found = append(found, strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(target.Expr))
		}
	}
	return found
}

// promtool runs promtool, which checks Prometheus rules.
func promtool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatalf("%v: run deploy/setup.sh --test", err)
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	return string(out), err
}

func TestAlertRulesAreTestedFiringAndQuiet(t *testing.T) {
	t.Parallel()
	if out, err := promtool(t, "check", "rules", rulesFile); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
	if out, err := promtool(t, "test", "rules", rulesTestFile); err != nil {
		t.Errorf("promtool test rules: %v\n%s", err, strings.TrimSpace(out))
	}
	var file struct {
		Tests []struct {
			Alerts []struct {
				Name string           `yaml:"alertname"`
				Want []map[string]any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	if err := yaml.Unmarshal([]byte(read(t, rulesTestFile)), &file); err != nil {
		t.Fatal(err)
	}
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		for _, a := range test.Alerts {
			if len(a.Want) > 0 {
				fires[a.Name] = true
			} else {
				quiet[a.Name] = true
			}
		}
	}
	for _, r := range alertRules(t) {
		if !fires[r.Alert] || !quiet[r.Alert] {
			t.Errorf("%s: %s lacks a case in which it fires, or one in which it does not", rulesTestFile, r.Alert)
		}
	}
}

func TestEveryAlertIsExplained(t *testing.T) {
	_, section, found := strings.Cut(read(t, "docs/operations.md"), alertsHeading)
	if !found {
		t.Fatalf("docs/operations.md has no section%s", alertsHeading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var explained []string
	for _, m := range regexp.MustCompile(`(?m)^### (\w+)$`).FindAllStringSubmatch(section, -1) {
		explained = append(explained, m[1])
	}
	var alerts []string
	for _, r := range alertRules(t) {
		alerts = append(alerts, r.Alert)
		if !slices.Contains([]string{"critical", "warning"}, r.Labels["severity"]) || r.Annotations["summary"] == "" {
			t.Errorf("%s has the labels %v and annotations %v", r.Alert, r.Labels, r.Annotations)
		}
		if want := "/docs/operations.md#" + strings.ToLower(r.Alert); !strings.HasSuffix(r.Annotations["runbook_url"], want) {
			t.Errorf("the runbook_url of %s is %s, want %s", r.Alert, r.Annotations["runbook_url"], want)
		}
	}
	if !slices.Equal(explained, alerts) {
		t.Errorf("docs/operations.md explains the alerts %q, want %q in this order", explained, alerts)
	}
}

func TestDashboardIsValid(t *testing.T) {
	d := readDashboard(t)
	if d.SchemaVersion < 36 || d.UID == "" || d.Title == "" || d.ID != nil {
		t.Errorf("schema version %d, uid %q, title %q, id %v", d.SchemaVersion, d.UID, d.Title, d.ID)
	}
	if v := d.Templating.List[0]; v.Name != "datasource" || v.Type != "datasource" || v.Query != "prometheus" {
		t.Errorf("the first variable is %v, want one that selects the Prometheus data source", v)
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" {
			t.Errorf("panel %d, %q: its ID or title is missing or not unique", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := taken[at]; other != "" || at[0] >= 24 {
					t.Errorf("panel %q overlaps %q or the right edge", p.Title, other)
				}
				taken[at] = p.Title
			}
		}
		if (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("panel %q is a %s with %d targets", p.Title, p.Type, len(p.Targets))
		}
		refs := map[string]bool{}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" || refs[target.RefID] || target.RefID == "" {
				t.Errorf("panel %q has a target with data source %q and refId %q", p.Title, target.Datasource.UID, target.RefID)
			}
			refs[target.RefID] = true
		}
	}
	type recorded struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []recorded
	for i, e := range d.expressions() {
		rules = append(rules, recorded{fmt.Sprintf("dashboard:expression:%d", i), e})
	}
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := promtool(t, "check", "rules", path); err != nil || !strings.Contains(out, fmt.Sprintf("%d rules found", len(rules))) {
		t.Errorf("promtool check rules, on the expressions of the panels: %v\n%s", err, out)
	}
}

var (
	selectors = regexp.MustCompile(`\b((?:brevet|go|process)_\w+)(?:\{([^}]*)\})?`)
	matchers  = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
)

// unknownMetrics returns the names, labels and label values in an expression that do not occur in a server's metrics.
func unknownMetrics(expr, metrics string) []string {
	var found []string
	for _, s := range selectors.FindAllStringSubmatch(expr, -1) {
		lines := regexp.MustCompile(`(?m)^`+s[1]+`(\{.*\})? \S+$`).FindAllString(metrics, -1)
		if len(lines) == 0 {
			found = append(found, s[1])
			continue
		}
		all := strings.Join(lines, "\n")
		for _, m := range matchers.FindAllStringSubmatch(s[2], -1) {
			label, value := m[1], m[3]
			if label == "instance" || label == "job" { // labels that Prometheus adds
				continue
			}
			for v := range strings.SplitSeq(value, "|") {
				if v == "intermediate" || v == "earlier" { // label values for CAs that the test's server does not have
					continue
				}
				if !strings.Contains(all, label+`="`+v+`"`) {
					found = append(found, s[1]+" "+label+"="+v)
				}
			}
		}
	}
	return found
}

func TestAlertsAndDashboardUseExistingMetrics(t *testing.T) {
	metrics := serverMetrics(t)
	for _, r := range alertRules(t) {
		for _, u := range unknownMetrics(r.Expr, metrics) {
			t.Errorf("the alert %s uses %s, which a server does not have", r.Alert, u)
		}
	}
	d := readDashboard(t)
	for _, e := range d.expressions() {
		for _, u := range unknownMetrics(e, metrics) {
			t.Errorf("the dashboard uses %s, which a server does not have: %s", u, e)
		}
	}
	for _, m := range regexp.MustCompile("`(brevet_[a-z_]+)[`{]").FindAllStringSubmatch(read(t, "docs/operations.md"), -1) {
		if !strings.Contains(metrics, "\n# TYPE "+m[1]+" ") {
			t.Errorf("docs/operations.md names the metric %s, which a server does not have", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (brevet_\w+) `).FindAllStringSubmatch(metrics, -1) {
		if !strings.Contains(read(t, "docs/operations.md"), "`"+m[1]) {
			t.Errorf("docs/operations.md does not explain the metric %s", m[1])
		}
	}
	for expr, want := range map[string]string{
		`brevet_made_up > 0`:                         "brevet_made_up",
		`rate(brevet_refusals_total{rule="no"}[5m])`: "brevet_refusals_total rule=no",
		`brevet_ready{color=~"red|green"}`:           "brevet_ready color=red",
	} {
		if got := unknownMetrics(expr, metrics); len(got) == 0 || got[0] != want {
			t.Errorf("%s: %q, want %s", expr, got, want)
		}
	}
}

// TestHealthyServerCausesNoAlert checks that a healthy server causes no alert, and that every panel has data.
// Prometheus' own code evaluates the rules and the panels with the metrics of a server. It fails for labels that do not
// match, or match twice.
func TestHealthyServerCausesNoAlert(t *testing.T) {
	const minutes = 8 * 60
	begin := float64(time.Now().Unix() - minutes*60) // promtool's time begins at zero
	var series []map[string]string
	for _, m := range regexp.MustCompile(`(?m)^((?:brevet|go|process)_\w+)(?:\{(.*)\})? (\S+)$`).FindAllStringSubmatch(serverMetrics(t), -1) {
		name, labels, value := m[1], m[2], servertest.Must(strconv.ParseFloat(m[3], 64))(t)
		if strings.HasSuffix(name, "_timestamp_seconds") || name == "process_start_time_seconds" {
			value -= begin
		}
		labels = strings.TrimPrefix(labels+`,instance="ca:7090",job="brevet"`, ",")
		values := fmt.Sprintf("%fx%d", value, minutes)
		switch name { // metrics that grow with time on a healthy server
		case "brevet_log_entries", "brevet_responder_synced_timestamp_seconds", "brevet_retention_last_run_timestamp_seconds":
			values = fmt.Sprintf("0+60x%d", minutes)
		}
		series = append(series, map[string]string{"series": name + "{" + labels + "}", "values": values})
	}
	alerts, panels := []any{}, []any{}
	for _, r := range alertRules(t) {
		alerts = append(alerts, map[string]any{"eval_time": fmt.Sprintf("%dm", minutes), "alertname": r.Alert, "exp_alerts": []any{}})
	}
	for _, e := range readDashboard(t).expressions() {
		if strings.HasSuffix(e, "> 0") { // refusals: a healthy server has none
			continue
		}
		panels = append(panels, map[string]any{"eval_time": fmt.Sprintf("%dm", minutes), "expr": "absent(" + e + ")", "exp_samples": []any{}})
	}
	text, err := yaml.Marshal(map[string]any{
		"rule_files": []string{servertest.Must(filepath.Abs(rulesFile))(t)}, "evaluation_interval": "1m",
		"tests": []any{map[string]any{"interval": "1m", "input_series": series, "alert_rule_test": alerts, "promql_expr_test": panels}},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "healthy.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := promtool(t, "test", "rules", path); err != nil {
		t.Errorf("promtool test rules, with the metrics of a server: %v\n%s", err, strings.TrimSpace(out))
	}
}

// serverMetrics returns the metrics of a server that has issued certificates, refused a call and sent an OCSP response.
func serverMetrics(t *testing.T) string {
	t.Helper()
	second := filepath.Join(t.TempDir(), "log.archive")
	if err := os.WriteFile(second, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := servertest.New(t, newSoftHSM(t), servertest.Options{ArchiveCopy: second})
	w.OCSP(t, w.Operator.Certificate)
	resp, err := http.Get("http://" + w.Operations + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// newSoftHSM makes a private SoftHSM token with a root and an issuing key.
func newSoftHSM(t *testing.T) servertest.Ground {
	t.Helper()
	module, err := hsm.FindSoftHSM()
	if err != nil {
		t.Fatalf("%v: run deploy/setup.sh --test", err)
	}
	conf := servertest.Must(hsm.WriteSoftHSM(t.TempDir()))(t)
	t.Setenv(hsm.SoftHSMConfEnv, conf)
	pin := servertest.Must(hsm.NewPIN([]byte("user-246810")))(t)
	servertest.Must(hsm.Init(t.Context(), module, "test", pin, pin))(t)
	token := servertest.Must(hsm.Open(t.Context(), hsm.Config{Module: module, Label: "test"}, pin))(t)
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	root := servertest.Must(token.Generate(t.Context(), "root", hsm.P256))(t)
	issuing := servertest.Must(token.Generate(t.Context(), "issuing", hsm.P256))(t)
	return servertest.Ground{
		Root: root, Issuing: issuing, Token: hsm.Watched{HSM: token, Keys: []*hsm.Key{issuing}},
		Open: func(ctx context.Context, path string) (servertest.Store, error) {
			db, err := sqlite.Open(ctx, path)
			return sqliteStore{db}, err
		},
	}
}

// sqliteStore is a SQLite store as a servertest.Store.
type sqliteStore struct{ *tables.DB }

func (s sqliteStore) Stores() server.Stores {
	return server.Stores{CA: s.CA(), RA: s.RA(), Policies: s.RA(), Nonces: s.RA(), ACME: s.ACME(), Audit: s.RA(), Retention: s.RA(), Revocation: s.Revocation(), Rotations: s.Rotations(), CRLs: s.Revocation(), Feed: s.Revocation(), Log: s.Log()}
}

func (s sqliteStore) Installations() ca.Installations { return s.CA() }
