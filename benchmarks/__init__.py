"""Speed beside bitsandbytes, cuBLAS and the memory, written as data; one table of cases."""
