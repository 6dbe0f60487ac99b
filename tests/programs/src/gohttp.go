// An HTTP server and client on Go's own network code: "serve ADDRESS DIRECTORY" or "get URL".
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func get(url string) error {
	response, err := http.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func main() {
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == "serve":
		err = http.ListenAndServe(os.Args[2], http.FileServer(http.Dir(os.Args[3])))
	case len(os.Args) == 3 && os.Args[1] == "get":
		err = get(os.Args[2])
	default:
		err = fmt.Errorf("usage: gohttp serve ADDRESS DIRECTORY | get URL")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
