package cluster

import (
	"testing"
)

func TestStandby(t *testing.T) {
	primary, err := Start(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = primary.Stop() }() // the test is over
	if err := primary.End(); err != nil {
		t.Fatal(err)
	}
	if err := primary.Save("old"); err != nil {
		t.Fatal(err)
	}
	if err := primary.Run(); err != nil {
		t.Fatal(err)
	}
	if err := primary.Exec(`CREATE TABLE a (n integer)`); err != nil {
		t.Fatal(err)
	}
	standby, err := primary.Standby("second")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = standby.Stop() }()
	if err := primary.Synchronous("second"); err != nil {
		t.Fatal(err)
	}
	if err := primary.Exec(`INSERT INTO a VALUES (1)`); err != nil {
		t.Fatal(err)
	}
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Wait(`SELECT count(*) = 1 FROM a`); err != nil {
		t.Fatal(err)
	}
	if err := primary.Restore("old"); err != nil {
		t.Fatal(err)
	}
	if err := primary.Run(); err != nil {
		t.Fatal(err)
	}
	if err := primary.Wait(`SELECT to_regclass('a') IS NULL`); err != nil {
		t.Fatal(err)
	}
}
